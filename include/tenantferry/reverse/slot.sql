-- The reverse slot and the session that uses it: database, process id, whether that session is ours,
-- up to where it is confirmed, whether it is lost, and why. Which of the reasons a server can tell
-- depends on its version, hence the detour over jsonb. Parameter: the slot's name.
SELECT
    slots.database = current_database(),
    slots.database::text,
    slots.active_pid,
    coalesce(sessions.application_name LIKE 'tenantferry %%', false),
    slots.confirmed_flush_lsn::text,
    slots.wal_status = 'lost'
        OR coalesce((to_jsonb(slots) ->> 'conflicting')::boolean, false)
        OR to_jsonb(slots) ->> 'invalidation_reason' IS NOT NULL,
    coalesce(to_jsonb(slots) ->> 'invalidation_reason', slots.wal_status)
FROM pg_catalog.pg_replication_slots AS slots
LEFT JOIN pg_catalog.pg_stat_activity AS sessions ON sessions.pid = slots.active_pid
WHERE slots.slot_name = %s
