-- Range types without functions of their own: schema, name, subtype, operator class, collation that
-- is not the subtype's own, difference function, schema and name of the multirange type, comment.
-- schemas: oids of the schemas to read.
SELECT
    n.nspname,
    t.typname,
    pg_catalog.format_type(r.rngsubtype, NULL),
    pg_catalog.quote_ident(opn.nspname) || '.' || pg_catalog.quote_ident(op.opcname),
    CASE WHEN r.rngcollation <> sub.typcollation THEN (
        SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname)
        FROM pg_catalog.pg_collation AS co
        JOIN pg_catalog.pg_namespace AS cn ON cn.oid = co.collnamespace
        WHERE co.oid = r.rngcollation)
    END,
    'pg_catalog.' || pg_catalog.quote_ident(diff.proname),
    mn.nspname,
    mt.typname,
    pg_catalog.obj_description(t.oid, 'pg_type')
FROM pg_catalog.pg_range AS r
JOIN pg_catalog.pg_type AS t ON t.oid = r.rngtypid
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_type AS sub ON sub.oid = r.rngsubtype
JOIN pg_catalog.pg_type AS mt ON mt.oid = r.rngmultitypid
JOIN pg_catalog.pg_namespace AS mn ON mn.oid = mt.typnamespace
JOIN pg_catalog.pg_opclass AS op ON op.oid = r.rngsubopc
JOIN pg_catalog.pg_namespace AS opn ON opn.oid = op.opcnamespace
LEFT JOIN pg_catalog.pg_proc AS diff ON diff.oid = r.rngsubdiff
WHERE r.rngcanonical = 0
    AND (diff.oid IS NULL OR diff.pronamespace = 'pg_catalog'::pg_catalog.regnamespace)
    AND t.typnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
            AND d.objid = t.oid AND d.deptype = 'e')
ORDER BY n.nspname, t.typname
