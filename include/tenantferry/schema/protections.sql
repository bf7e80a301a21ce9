-- Row security and privileges of ordinary and partitioned tables.
-- schemas: oids of the schemas to read.
SELECT
    c.oid,
    c.relrowsecurity,
    c.relforcerowsecurity,
    (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
            p.polname, p.polcmd, p.polpermissive,
            pg_catalog.pg_get_expr(p.polqual, p.polrelid),
            pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)) ORDER BY p.polname)
        FROM pg_catalog.pg_policy AS p
        WHERE p.polrelid = c.oid
    ),
    array(
        SELECT DISTINCT acl.privilege_type::text
        FROM pg_catalog.aclexplode(c.relacl) AS acl
        WHERE acl.grantee IN (0, pg_catalog.to_regrole('tenantferry_app')::oid)
        ORDER BY 1)
FROM pg_catalog.pg_class AS c
WHERE c.relkind IN ('r', 'p')
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
