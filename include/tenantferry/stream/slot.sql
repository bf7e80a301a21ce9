-- One replication slot and the session that uses it. Which of the reasons for a lost slot a server
-- can tell depends on its version, hence the detour over jsonb. Parameter: the slot's name.
SELECT
    slots.active_pid,
    sessions.application_name LIKE 'tenantferry %%' AS is_ours,
    slots.confirmed_flush_lsn::text,
    slots.wal_status = 'lost'
        OR coalesce((to_jsonb(slots) ->> 'conflicting')::boolean, false)
        OR to_jsonb(slots) ->> 'invalidation_reason' IS NOT NULL,
    coalesce(to_jsonb(slots) ->> 'invalidation_reason', slots.wal_status)
FROM pg_catalog.pg_replication_slots AS slots
LEFT JOIN pg_catalog.pg_stat_activity AS sessions ON sessions.pid = slots.active_pid
WHERE slots.slot_name = %s
