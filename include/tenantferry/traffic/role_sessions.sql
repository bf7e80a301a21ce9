-- Sessions that work as one role in this database, as (pid, is_in_transaction, description), the oldest
-- transaction first. A parallel worker works for a session that is listed itself.
-- role: its name.
SELECT
    a.pid,
    a.xact_start IS NOT NULL AS is_in_transaction,
    format('pid %%s, user "%%s", application "%%s", client %%s, %%s for %%s s%%s',
        a.pid, a.usename, a.application_name, coalesce(host(a.client_addr), 'local'),
        coalesce(a.state, a.backend_type),
        round(extract(epoch FROM clock_timestamp() - coalesce(a.state_change, a.backend_start))),
        ', last query began at ' || a.query_start::time(0)) AS description
FROM pg_catalog.pg_stat_activity AS a
WHERE a.datname = current_database()
    AND a.usename = %(role)s
    AND coalesce(a.backend_type, '') <> 'parallel worker'
ORDER BY a.xact_start NULLS LAST, a.pid
