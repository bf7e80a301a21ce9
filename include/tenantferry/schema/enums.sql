-- Enumerated types with their labels in sort order.
-- schemas: oids of the schemas to read.
SELECT
    n.nspname,
    t.typname,
    array(
        SELECT e.enumlabel::text FROM pg_catalog.pg_enum AS e
        WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder),
    pg_catalog.obj_description(t.oid, 'pg_type')
FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
WHERE t.typtype = 'e'
    AND t.typnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
            AND d.objid = t.oid AND d.deptype = 'e')
ORDER BY n.nspname, t.typname
