-- What the target has left of replication origins, and which there are. No parameters.
SELECT
    coalesce(
        current_setting('max_active_replication_origins', true),
        current_setting('max_replication_slots'))::integer
    - (SELECT count(*) FROM pg_catalog.pg_replication_origin),
    (SELECT coalesce(pg_catalog.array_agg(o.roname), '{}')
     FROM pg_catalog.pg_replication_origin AS o)
