-- Views with what each reads. A view whose GROUP BY relies on a primary key depends on the
-- key's constraint.
-- schemas: oids of the schemas to read.
SELECT
    n.nspname,
    c.relname,
    pg_catalog.pg_get_viewdef(c.oid),
    c.reloptions,
    (
        SELECT pg_catalog.jsonb_agg(DISTINCT
            pg_catalog.jsonb_build_array(rc.relkind, rn.nspname, rc.relname))
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_class AS rc ON rc.oid = d.refobjid
        JOIN pg_catalog.pg_namespace AS rn ON rn.oid = rc.relnamespace
        WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND rc.oid <> c.oid
    ),
    EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
            AND d.refclassid = 'pg_catalog.pg_constraint'::pg_catalog.regclass),
    pg_catalog.obj_description(c.oid, 'pg_class'),
    array(
        SELECT DISTINCT acl.privilege_type::text
        FROM pg_catalog.aclexplode(c.relacl) AS acl
        WHERE acl.grantee IN (0, pg_catalog.to_regrole('tenantferry_app')::oid)
        ORDER BY 1)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = c.oid AND r.rulename = '_RETURN'
WHERE c.relkind = 'v'
    AND c.relnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname, c.relname
