-- Columns of ordinary and partitioned tables, in their order, with the sequence that feeds each.
-- schemas: oids of the schemas to read.
SELECT
    a.attrelid,
    a.attname,
    pg_catalog.format_type(a.atttypid, a.atttypmod),
    a.attnotnull,
    CASE WHEN a.attcollation <> t.typcollation THEN (
        SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname)
        FROM pg_catalog.pg_collation AS co
        JOIN pg_catalog.pg_namespace AS cn ON cn.oid = co.collnamespace
        WHERE co.oid = a.attcollation)
    END,
    pg_catalog.pg_get_expr(ad.adbin, ad.adrelid),
    a.attgenerated,
    a.attidentity,
    s.nspname,
    s.relname,
    pg_catalog.col_description(a.attrelid, a.attnum)
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef AS ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
LEFT JOIN LATERAL (
    -- An identity column owns its sequence; a serial's default reads one, owned or not.
    SELECT sn.nspname, sc.relname
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_class AS sc ON sc.relkind = 'S' AND sc.oid = CASE d.deptype
        WHEN 'i' THEN d.objid ELSE d.refobjid END
    JOIN pg_catalog.pg_namespace AS sn ON sn.oid = sc.relnamespace
    WHERE (a.attidentity <> '' AND d.deptype = 'i'
            AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum)
        OR (d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = ad.oid
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype = 'n')
    LIMIT 1
) AS s ON true
WHERE c.relkind IN ('r', 'p')
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
    AND a.attnum > 0
    AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
