-- Sequences, with the column that owns each, if one does.
-- schemas: oids of the schemas to read.
SELECT
    n.nspname,
    c.relname,
    pg_catalog.format_type(s.seqtypid, NULL),
    s.seqstart,
    s.seqincrement,
    s.seqmin,
    s.seqmax,
    s.seqcache,
    s.seqcycle,
    tn.nspname,
    t.relname,
    a.attname
FROM pg_catalog.pg_sequence AS s
JOIN pg_catalog.pg_class AS c ON c.oid = s.seqrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_depend AS o
    ON o.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND o.objid = c.oid
    AND o.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND o.deptype IN ('a', 'i') AND o.refobjsubid > 0
LEFT JOIN pg_catalog.pg_class AS t ON t.oid = o.refobjid
LEFT JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid
WHERE c.relnamespace = ANY (%(schemas)s::oid[])
    AND c.relpersistence <> 't'
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname, c.relname
