-- Schemas of the application: not Postgres' own, not ours, not an extension's.
-- excluded: names of schemas that are ours; wanted: names to keep, null for all.
SELECT n.oid, n.nspname, EXISTS (
    -- The application's group, or everyone, may look into it.
    SELECT FROM pg_catalog.aclexplode(
        coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS acl
    WHERE acl.privilege_type = 'USAGE'
        AND acl.grantee IN (0, pg_catalog.to_regrole('tenantferry_app')::oid))
FROM pg_catalog.pg_namespace AS n
WHERE n.nspname !~ '^pg_'
    AND n.nspname <> 'information_schema'
    AND n.nspname <> ALL (%(excluded)s::text[])
    AND (%(wanted)s::text[] IS NULL OR n.nspname = ANY (%(wanted)s::text[]))
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass
            AND d.objid = n.oid AND d.deptype = 'e')
ORDER BY n.nspname
