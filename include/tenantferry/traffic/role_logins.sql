-- Processes that are logging in to this server, to whatever database and as whomever: which role it is
-- shows only when they are through. A login is a transaction from before the check that a role may
-- log in until after the session shows in pg_stat_activity with its role; from 18 on it shows there
-- before, without a role. Of the server's own workers none counts that runs without one.
-- No parameters.
SELECT DISTINCT l.pid
FROM pg_catalog.pg_locks AS l
WHERE l.locktype = 'virtualxid'
    AND l.mode = 'ExclusiveLock'
    AND l.pid IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_stat_activity AS a
        WHERE a.pid = l.pid
            AND (a.usesysid IS NOT NULL OR coalesce(a.backend_type, '') <> 'client backend')
    )
