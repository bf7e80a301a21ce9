-- What the tables of an application are made of: schema, name, a fingerprint of the shape, a
-- fingerprint of the files with the rows, and these files, those of partitions with it. The last row,
-- without a schema, is that of the types.
-- No stream tells all of it: a table that comes with its rows is not published yet; a column with a
-- default, or ALTER ... USING, changes rows that nobody writes; a publication of a root tells neither
-- that a partition comes or goes nor that one is truncated. Of the transaction's snapshot.
-- What is taken out of the publication and put back was not sent in between.
-- schemas: oids of the schemas to read; publication: its name.
WITH RECURSIVE tree (root, oid, attached) AS (
    SELECT c.oid, c.oid, ''
    FROM pg_catalog.pg_class AS c
    WHERE c.relkind = 'p' AND NOT c.relispartition AND c.relnamespace = ANY (%(schemas)s::oid[])
    UNION ALL
    -- A partition that was away, and changed meanwhile, has another row here.
    SELECT tree.root, i.inhrelid, format('%%s %%s', i.xmin, i.inhdetachpending)
    FROM tree
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = tree.oid
),
partitions (root, shape, files, parts) AS (
    SELECT
        tree.root,
        string_agg(format('%%s %%s', tree.oid, tree.attached), ',' ORDER BY tree.oid),
        string_agg(leaf.relfilenode::text, ' ' ORDER BY tree.oid),
        array_agg(format('%%s %%s %%s', tree.oid, tree.attached, leaf.relfilenode))
    FROM tree
    JOIN pg_catalog.pg_class AS leaf ON leaf.oid = tree.oid
    GROUP BY tree.root
),
columns (relation, shape, missing, versions) AS (
    SELECT
        a.attrelid,
        string_agg(
            format('%%s %%s %%s %%s %%s', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated),
            ',' ORDER BY a.attnum),
        -- What old rows have in a new column; VACUUM FULL writes it into them.
        string_agg(format('%%s %%s', a.attnum, a.attmissingval), ',' ORDER BY a.attnum)
            FILTER (WHERE a.atthasmissing),
        -- ATTACH writes each, and DETACH: what is a partition for a while is sent as its root.
        string_agg(a.xmin::text, ' ' ORDER BY a.attnum)
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relkind IN ('r', 'p', 'c')
        AND c.relnamespace = ANY (%(schemas)s::oid[])
        AND NOT c.relispartition
        AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY a.attrelid
),
published (relation, entry) AS (
    SELECT r.prrelid, format('%%s %%s', r.oid, p.xmin)
    FROM pg_catalog.pg_publication AS p
    JOIN pg_catalog.pg_publication_rel AS r ON r.prpubid = p.oid
    WHERE p.pubname = %(publication)s
)
SELECT
    n.nspname::text,
    c.relname::text,
    pg_catalog.md5(
        format('%%s: %%s; %%s; %%s', c.oid, columns.shape, partitions.shape, published.entry)),
    pg_catalog.md5(
        format('%%s: %%s %%s', coalesce(partitions.files, c.relfilenode::text),
            columns.missing, columns.versions)),
    coalesce(partitions.parts, ARRAY[format('%%s %%s', c.oid, c.relfilenode)])
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN columns ON columns.relation = c.oid
LEFT JOIN partitions ON partitions.root = c.oid
LEFT JOIN published ON published.relation = c.oid
WHERE c.relkind IN ('r', 'p')
    AND c.relpersistence = 'p'
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid = c.oid AND d.deptype = 'e')
UNION ALL
SELECT
    NULL,
    'types',
    pg_catalog.md5(coalesce(string_agg(parts.state, ',' ORDER BY parts.state), '')),
    '',
    '{}'
FROM (
    SELECT format('%%s %%s %%s', e.enumtypid, e.enumsortorder, e.enumlabel)
    FROM pg_catalog.pg_enum AS e
    JOIN pg_catalog.pg_type AS t ON t.oid = e.enumtypid
    WHERE t.typnamespace = ANY (%(schemas)s::oid[])
    UNION ALL
    SELECT format('%%s %%s', c.oid, columns.shape)
    FROM pg_catalog.pg_class AS c
    JOIN columns ON columns.relation = c.oid
    WHERE c.relkind = 'c'
) AS parts (state)
