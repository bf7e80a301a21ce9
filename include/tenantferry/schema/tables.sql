-- Ordinary and partitioned tables that are permanent; a partition is part of its root. Of each: oid,
-- schema, name, replica identity, rows by the statistics, bytes, comment, whether it is
-- partitioned, the tables that it inherits from, whether others inherit from it.
-- schemas: oids of the schemas to read.
WITH RECURSIVE tree (root, oid) AS (
    -- Not pg_partition_tree(), which locks every partition until the transaction ends.
    SELECT c.oid, i.inhrelid
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = c.oid
    WHERE c.relkind = 'p' AND NOT c.relispartition
    UNION ALL
    SELECT tree.root, i.inhrelid
    FROM tree
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.oid
),
leaves (root, estimated_rows, bytes) AS (
    -- A leaf that was never analyzed counts as empty.
    SELECT
        tree.root,
        sum(greatest(leaf.reltuples, 0))::bigint,
        sum(pg_catalog.pg_table_size(leaf.oid))::bigint
    FROM tree
    JOIN pg_catalog.pg_class AS leaf ON leaf.oid = tree.oid AND leaf.relkind = 'r'
    GROUP BY tree.root
)
SELECT
    c.oid,
    n.nspname,
    c.relname,
    c.relreplident,
    coalesce(leaves.estimated_rows, c.reltuples::bigint),
    coalesce(leaves.bytes, pg_catalog.pg_table_size(c.oid)),
    pg_catalog.obj_description(c.oid, 'pg_class'),
    c.relkind = 'p',
    array(
        SELECT ARRAY[pn.nspname::text, pc.relname::text]
        FROM pg_catalog.pg_inherits AS i
        JOIN pg_catalog.pg_class AS pc ON pc.oid = i.inhparent
        JOIN pg_catalog.pg_namespace AS pn ON pn.oid = pc.relnamespace
        WHERE i.inhrelid = c.oid
        ORDER BY i.inhseqno),
    c.relkind = 'r' AND EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = c.oid)
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN leaves ON leaves.root = c.oid
WHERE c.relkind IN ('r', 'p')
    AND c.relpersistence = 'p'
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname, c.relname
