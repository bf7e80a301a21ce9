-- Columns that an application which does not know their meaning may write: in no key, no
-- constraint and no unique index, not generated, and of a type whose values are easy to make.
-- One row per table with a primary key; its columns may be none. No parameters.

SELECT
    n.nspname AS schema_name,
    c.relname AS table_name,
    (
        SELECT array_agg(a.attname::text ORDER BY place)
        FROM unnest(pk.conkey) WITH ORDINALITY AS key (number, place)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = key.number
    ) AS key_columns,
    (
        SELECT json_agg(
            json_build_array(
                a.attname, t.typname,
                -- Limits of varchar(n), char(n) and numeric(p, s); -1 where there is none.
                a.atttypmod
            )
            ORDER BY a.attnum
        )
        FROM pg_catalog.pg_attribute AS a
        JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            AND a.attgenerated = '' AND a.attidentity = ''
            AND t.typnamespace = 'pg_catalog'::regnamespace
            AND t.typname IN (
                'text', 'varchar', 'int4', 'int8', 'numeric', 'bool', 'timestamp', 'timestamptz',
                'date', 'jsonb'
            )
            AND NOT EXISTS (
                -- A constraint of this table, or another table's foreign key to it.
                SELECT FROM pg_catalog.pg_depend AS d
                WHERE d.classid = 'pg_constraint'::regclass
                    AND d.refclassid = 'pg_class'::regclass
                    AND d.refobjid = c.oid AND d.refobjsubid = a.attnum
            )
            AND NOT EXISTS (
                -- A unique index depends also on the columns of its expressions and predicate.
                SELECT FROM pg_catalog.pg_depend AS d
                JOIN pg_catalog.pg_index AS i ON i.indexrelid = d.objid AND i.indisunique
                WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                    AND d.refobjid = c.oid AND d.refobjsubid = a.attnum
            )
            AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_depend AS d
                WHERE c.relkind = 'p' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.objsubid = 0 AND d.refobjid = c.oid AND d.refobjsubid = a.attnum
            )
            AND a.attnum <> ALL (coalesce(
                (
                    SELECT p.partattrs::smallint[]
                    FROM pg_catalog.pg_partitioned_table AS p WHERE p.partrelid = c.oid
                ), '{}'
            ))
            AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'UPDATE')
    ) AS columns,
    greatest(c.reltuples, 0) AS estimated_rows
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_constraint AS pk ON pk.conrelid = c.oid AND pk.contype = 'p'
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
    -- The table belongs to an extension, which alone knows what may stand in it.
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
ORDER BY n.nspname, c.relname
