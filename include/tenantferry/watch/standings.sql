-- Where each registered tenant stands, for how long, whether it can go back, and whether one of its
-- steps runs at this moment. No parameters.
SELECT
    tenants.tenant,
    tenants.phase,
    extract(epoch FROM clock_timestamp() - tenants.changed_at)::float8,
    tenants.changed_at,
    tenants.source_identity,
    graces.id IS NOT NULL AND graces.lost_at IS NULL,
    EXISTS (
        SELECT FROM pg_catalog.pg_locks AS locks
        JOIN pg_catalog.pg_database AS databases
            ON databases.oid = locks.database AND databases.datname = current_database()
        WHERE locks.locktype = 'advisory' AND locks.objsubid = 1 AND locks.granted
            AND (locks.classid::bigint << 32 | locks.objid::bigint)
                = hashtextextended('tenantferry step ' || tenants.tenant, 0)
    )
FROM tenantferry.tenants AS tenants
LEFT JOIN tenantferry.graces AS graces
    ON graces.tenant = tenants.tenant AND graces.ended_at IS NULL
ORDER BY tenants.tenant
