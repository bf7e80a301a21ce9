-- Domains with their checks, in the order they were made: one may be based on another.
-- schemas: oids of the schemas to read.
SELECT
    n.nspname,
    t.typname,
    pg_catalog.format_type(t.typbasetype, t.typtypmod),
    t.typnotnull,
    pg_catalog.pg_get_expr(t.typdefaultbin, 0),
    CASE WHEN t.typcollation <> b.typcollation THEN (
        SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname)
        FROM pg_catalog.pg_collation AS co
        JOIN pg_catalog.pg_namespace AS cn ON cn.oid = co.collnamespace
        WHERE co.oid = t.typcollation)
    END,
    checks.names,
    checks.definitions,
    pg_catalog.obj_description(t.oid, 'pg_type')
FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_type AS b ON b.oid = t.typbasetype
CROSS JOIN LATERAL (
    SELECT
        array_agg(con.conname::text ORDER BY con.conname) AS names,
        array_agg(pg_catalog.pg_get_constraintdef(con.oid) ORDER BY con.conname) AS definitions
    FROM pg_catalog.pg_constraint AS con
    WHERE con.contypid = t.oid AND con.contype = 'c'
) AS checks
WHERE t.typtype = 'd'
    AND t.typnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
            AND d.objid = t.oid AND d.deptype = 'e')
ORDER BY t.oid
