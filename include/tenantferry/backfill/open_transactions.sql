-- Transactions of the whole cluster that have written and are not over: what creating a logical
-- slot waits for. No parameters.
SELECT
    format(
        'process %s of user %s in database %s (%s), %s, open for %s s',
        activity.pid, activity.usename, activity.datname,
        coalesce(nullif(activity.application_name, ''), 'no application name'),
        coalesce(activity.state, 'state unknown'),
        extract(epoch FROM clock_timestamp() - activity.xact_start)::integer
    ) AS transaction,
    activity.xact_start AS since
FROM pg_catalog.pg_stat_activity AS activity
WHERE activity.backend_xid IS NOT NULL AND activity.pid <> pg_catalog.pg_backend_pid()
UNION ALL
SELECT
    format(
        'prepared transaction "%s" of user %s in database %s, prepared %s s ago',
        prepared.gid, prepared.owner, prepared.database,
        extract(epoch FROM clock_timestamp() - prepared.prepared)::integer
    ),
    prepared.prepared
FROM pg_catalog.pg_prepared_xacts AS prepared
ORDER BY since
LIMIT 10
