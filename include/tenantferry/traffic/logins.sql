-- Processes that are logging in to this database. Such a session passes the check of CONNECT before
-- it shows in pg_stat_activity, but it holds this lock from before the check until after it shows.
-- No parameters.
SELECT l.pid
FROM pg_catalog.pg_locks AS l
JOIN pg_catalog.pg_database AS d ON d.oid = l.objid
WHERE d.datname = current_database()
    AND l.locktype = 'object'
    AND l.classid = 'pg_catalog.pg_database'::pg_catalog.regclass
    AND l.mode = 'RowExclusiveLock'
    AND l.pid <> pg_backend_pid()
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_stat_activity AS a
        WHERE a.pid = l.pid AND (a.usename = current_user OR a.backend_type LIKE 'autovacuum%')
    )
