-- What a source server has left for moves, and the size of databases: one JSON object.
-- databases: their names.
SELECT pg_catalog.jsonb_build_object(
    'free_slots', current_setting('max_replication_slots')::integer - (
        SELECT count(*) FROM pg_catalog.pg_replication_slots),
    'free_senders', current_setting('max_wal_senders')::integer - (
        SELECT count(*) FROM pg_catalog.pg_stat_activity AS a
        WHERE a.backend_type = 'walsender'),
    'slots', (
        SELECT coalesce(pg_catalog.jsonb_object_agg(s.slot_name, s.active), '{}')
        FROM pg_catalog.pg_replication_slots AS s
        WHERE NOT s.temporary),
    'sizes', (
        SELECT coalesce(
            pg_catalog.jsonb_object_agg(d.datname, pg_catalog.pg_database_size(d.oid)), '{}')
        FROM pg_catalog.pg_database AS d
        WHERE d.datname = ANY (%(databases)s::text[]))
)
