-- Who else is in this database, as (pid, is_superuser, can_be_ended, is_in_transaction, description),
-- the oldest transaction first. Our own role's clients do not count. Of the server's own workers
-- only those do not that write nothing of their own accord: a parallel worker works for a session
-- that is looked at itself. Any other may: a subscription's, or one of an extension that runs jobs.
-- No parameters.
SELECT
    a.pid,
    coalesce(r.rolsuper, true) AS is_superuser,
    coalesce(a.backend_type IN ('client backend', 'walsender'), true) AS can_be_ended,
    a.xact_start IS NOT NULL AS is_in_transaction,
    format('pid %s, user "%s", application "%s", client %s, %s for %s s%s',
        a.pid, a.usename, a.application_name, coalesce(host(a.client_addr), 'local'),
        coalesce(a.state, a.backend_type),
        round(extract(epoch FROM clock_timestamp() - coalesce(a.state_change, a.backend_start))),
        ', last query began at ' || a.query_start::time(0)) AS description
FROM pg_catalog.pg_stat_activity AS a
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = a.usesysid
WHERE a.datname = current_database()
    -- Without pg_monitor the type is null: better one session too many than one too few.
    AND coalesce(a.backend_type, '')
        NOT IN ('autovacuum worker', 'parallel worker', 'slotsync worker')
    AND NOT (
        a.usename IS NOT DISTINCT FROM current_user
        AND coalesce(a.backend_type, 'client backend') IN ('client backend', 'walsender')
    )
ORDER BY a.xact_start NULLS LAST, a.pid
