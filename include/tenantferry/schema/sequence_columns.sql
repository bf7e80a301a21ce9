-- Columns that take their values from a sequence, and whether an index can tell the greatest.
-- No parameters.
WITH reads (sequence, relation, number) AS (
    SELECT d.refobjid, ad.adrelid, ad.adnum
    FROM pg_catalog.pg_depend AS d
    JOIN pg_catalog.pg_attrdef AS ad ON ad.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    UNION
    SELECT d.objid, d.refobjid, d.refobjsubid
    FROM pg_catalog.pg_depend AS d
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
        AND d.deptype = 'i'
)
SELECT
    sn.nspname,
    s.relname,
    tn.nspname,
    t.relname,
    a.attname,
    a.atttypid = ANY ('{int2,int4,int8}'::pg_catalog.regtype[]) AND EXISTS (
        SELECT FROM pg_catalog.pg_index AS ix
        JOIN pg_catalog.pg_class AS ic ON ic.oid = ix.indexrelid
        JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam
        WHERE ix.indrelid = t.oid AND ix.indkey[0] = a.attnum AND am.amname = 'btree'
            AND ix.indpred IS NULL AND ix.indisvalid)
FROM reads AS r
JOIN pg_catalog.pg_class AS s ON s.oid = r.sequence AND s.relkind = 'S'
JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_class AS t ON t.oid = r.relation AND NOT t.relispartition
JOIN pg_catalog.pg_namespace AS tn ON tn.oid = t.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = r.relation AND a.attnum = r.number
ORDER BY 1, 2, 3, 4, 5
