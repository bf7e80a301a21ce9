-- Whether we may see the standbys, and which of them replays furthest behind: name, seconds. Null
-- is unknown, e.g. of one that is idle. Parameter: names of standbys that do not count.
SELECT
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'),
    standby.application_name,
    standby.seconds
FROM (VALUES (1)) AS always (is_true)
LEFT JOIN LATERAL (
    SELECT sender.application_name, extract(epoch FROM sender.replay_lag)::float8 AS seconds
    FROM pg_catalog.pg_stat_replication AS sender
    WHERE sender.replay_lag IS NOT NULL
        -- One that has replayed everything keeps its last lag until its next report.
        AND sender.replay_lsn < pg_catalog.pg_current_wal_flush_lsn()
        AND sender.application_name <> ALL (%(ignored)s::text[])
        -- A stream, ours or anybody's, is no standby.
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_replication_slots AS slot
            WHERE slot.active_pid = sender.pid AND slot.slot_type = 'logical')
    ORDER BY sender.replay_lag DESC
    LIMIT 1
) AS standby ON true
