-- Partitions of partitioned tables, at every depth: schema and name of the root, schema and name of
-- the partition, kind of relation, persistence, replica identity and the columns of its index, and
-- what only the partition has.
-- schemas: oids of the schemas of the roots to read.
WITH RECURSIVE tree (root, oid) AS (
    -- Not pg_partition_tree(), which locks every partition until the transaction ends.
    SELECT c.oid, i.inhrelid
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = c.oid
    WHERE c.relkind = 'p'
        AND NOT c.relispartition
        AND c.relnamespace = ANY (%(schemas)s::oid[])
    UNION ALL
    SELECT tree.root, i.inhrelid
    FROM tree
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.oid
),
own (oid, what) AS (
    SELECT ix.indrelid, 'unique index "' || ic.relname || '"'
    FROM pg_catalog.pg_index AS ix
    JOIN pg_catalog.pg_class AS ic ON ic.oid = ix.indexrelid
    WHERE ix.indisunique AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = ix.indexrelid)
    UNION ALL
    SELECT con.conrelid, CASE con.contype
        WHEN 'c' THEN 'check' WHEN 'f' THEN 'foreign key' ELSE 'exclusion' END
        || ' "' || con.conname || '"'
    FROM pg_catalog.pg_constraint AS con
    WHERE con.contype IN ('c', 'f', 'x') AND con.conparentid = 0 AND con.coninhcount = 0
    UNION ALL
    SELECT t.tgrelid, 'trigger "' || t.tgname || '"'
    FROM pg_catalog.pg_trigger AS t
    WHERE NOT t.tgisinternal AND t.tgparentid = 0
)
SELECT
    rn.nspname,
    rc.relname,
    n.nspname,
    c.relname,
    c.relkind,
    c.relpersistence,
    c.relreplident,
    array(
        SELECT a.attname::text
        FROM pg_catalog.pg_index AS ix
        CROSS JOIN LATERAL unnest(ix.indkey::smallint[]) WITH ORDINALITY AS k (attnum, number)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE ix.indrelid = c.oid AND k.number <= ix.indnkeyatts
            AND CASE c.relreplident
                WHEN 'd' THEN ix.indisprimary AND ix.indimmediate
                WHEN 'i' THEN ix.indisreplident END
        ORDER BY k.number),
    array(SELECT own.what FROM own WHERE own.oid = c.oid ORDER BY own.what),
    array(
        SELECT a.attname::text
        FROM pg_catalog.pg_attribute AS a
        JOIN pg_catalog.pg_attrdef AS ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
        JOIN pg_catalog.pg_attribute AS ra ON ra.attrelid = rc.oid AND ra.attname = a.attname
        JOIN pg_catalog.pg_attrdef AS rad ON rad.adrelid = ra.attrelid AND rad.adnum = ra.attnum
        WHERE a.attrelid = c.oid AND a.attgenerated <> ''
            AND pg_catalog.pg_get_expr(ad.adbin, ad.adrelid)
                <> pg_catalog.pg_get_expr(rad.adbin, rad.adrelid)
        ORDER BY a.attname)
FROM tree
JOIN pg_catalog.pg_class AS rc ON rc.oid = tree.root
JOIN pg_catalog.pg_namespace AS rn ON rn.oid = rc.relnamespace
JOIN pg_catalog.pg_class AS c ON c.oid = tree.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY rn.nspname, rc.relname, n.nspname, c.relname
