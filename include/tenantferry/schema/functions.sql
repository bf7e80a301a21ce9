-- Functions and procedures, in the order they were made. Aggregates are not among them.
-- schemas: oids of the schemas to read.
SELECT
    n.nspname,
    p.proname,
    pg_catalog.pg_get_function_identity_arguments(p.oid),
    l.lanname,
    pg_catalog.pg_get_functiondef(p.oid),
    p.prosecdef,
    p.prosqlbody IS NOT NULL OR EXISTS (
        SELECT
        FROM pg_catalog.pg_type AS t
        LEFT JOIN pg_catalog.pg_type AS element ON element.oid = t.typelem
        JOIN pg_catalog.pg_class AS c
            ON c.oid IN (t.typrelid, element.typrelid) AND c.relkind <> 'c'
        WHERE t.oid = p.prorettype
            OR t.oid = ANY (coalesce(p.proallargtypes, p.proargtypes::oid[])))
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_language AS l ON l.oid = p.prolang
WHERE p.prokind IN ('f', 'p', 'w')
    AND p.pronamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
            AND d.objid = p.oid AND d.deptype IN ('e', 'i'))
ORDER BY p.oid
