-- Of partitioned tables: schema, name, and a fingerprint of their partitions. Partitions that come
-- or go change it, and so does TRUNCATE of one of them, which no publication tells where the root
-- is published. It is that of the transaction's snapshot.
-- schemas, names: the tables; those that are not partitioned are left out.
WITH RECURSIVE tree (root, oid, pending) AS (
    SELECT c.oid, c.oid, false
    FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS wanted (schema, name)
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema
    JOIN pg_catalog.pg_class AS c
        ON c.relnamespace = n.oid AND c.relname = wanted.name AND c.relkind = 'p'
    UNION ALL
    SELECT
        tree.root,
        i.inhrelid,
        tree.pending OR i.inhdetachpending
    FROM tree
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.oid
)
SELECT
    n.nspname::text,
    root.relname::text,
    pg_catalog.md5(string_agg(
        format('%%s %%s %%s', tree.oid, leaf.relfilenode, tree.pending), ',' ORDER BY tree.oid))
FROM tree
JOIN pg_catalog.pg_class AS leaf ON leaf.oid = tree.oid
JOIN pg_catalog.pg_class AS root ON root.oid = tree.root
JOIN pg_catalog.pg_namespace AS n ON n.oid = root.relnamespace
GROUP BY n.nspname, root.relname
ORDER BY n.nspname, root.relname
