-- The replication slots of a server that bear our prefixes, and who uses them, with ages in seconds.
-- What a server can tell of a slot depends on its version, hence the detour over jsonb.
-- No parameters.
SELECT
    slots.slot_name::text,
    slots.database::text,
    slots.temporary,
    slots.active,
    sessions.application_name,
    extract(epoch FROM clock_timestamp() - sessions.backend_start)::float8,
    extract(epoch FROM clock_timestamp()
        - (to_jsonb(slots) ->> 'inactive_since')::timestamptz)::float8,
    pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
        slots.restart_lsn
    )::bigint,
    slots.wal_status,
    slots.safe_wal_size,
    slots.wal_status = 'lost'
        OR coalesce((to_jsonb(slots) ->> 'conflicting')::boolean, false)
        OR to_jsonb(slots) ->> 'invalidation_reason' IS NOT NULL,
    coalesce(to_jsonb(slots) ->> 'invalidation_reason', slots.wal_status)
FROM pg_catalog.pg_replication_slots AS slots
LEFT JOIN pg_catalog.pg_stat_activity AS sessions ON sessions.pid = slots.active_pid
WHERE slots.slot_type = 'logical'
    AND slots.slot_name ~ '^(tenantferry|tfround|tfvalidate|tfwitness)_'
ORDER BY slots.slot_name
