-- Composite types that no table owns, in the order they were made.
-- schemas: oids of the schemas to read.
SELECT
    n.nspname,
    c.relname,
    attributes.names,
    attributes.types,
    pg_catalog.obj_description(c.reltype, 'pg_type')
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT
        array_agg(a.attname::text ORDER BY a.attnum) AS names,
        array_agg(
            pg_catalog.format_type(a.atttypid, a.atttypmod)
            || CASE WHEN co.oid IS NULL THEN '' ELSE ' COLLATE '
                || pg_catalog.quote_ident(cn.nspname) || '.'
                || pg_catalog.quote_ident(co.collname) END
            ORDER BY a.attnum) AS types
    FROM pg_catalog.pg_attribute AS a
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_collation AS co
        ON co.oid = a.attcollation AND co.oid <> t.typcollation
    LEFT JOIN pg_catalog.pg_namespace AS cn ON cn.oid = co.collnamespace
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) AS attributes
WHERE c.relkind = 'c'
    AND c.relnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY c.oid
