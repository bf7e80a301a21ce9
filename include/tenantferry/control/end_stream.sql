-- End the session that streams a tenant, and wait until it is gone.
-- Parameters: milliseconds to wait, the tenant's key.
SELECT pg_terminate_backend(locks.pid, %s)
FROM pg_catalog.pg_locks AS locks
JOIN pg_catalog.pg_database AS databases
    ON databases.oid = locks.database AND databases.datname = current_database()
WHERE locks.locktype = 'advisory' AND locks.objsubid = 1 AND locks.granted
    AND locks.pid <> pg_backend_pid()
    AND (locks.classid::bigint << 32 | locks.objid::bigint)
        = hashtextextended('tenantferry stream ' || %s, 0)
