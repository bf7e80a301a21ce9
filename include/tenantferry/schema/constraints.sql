-- Checks and foreign keys of ordinary and partitioned tables, and NOT NULL that was never validated.
-- schemas: oids of the schemas to read.
SELECT
    con.conrelid,
    con.contype,
    con.conname,
    pg_catalog.pg_get_constraintdef(con.oid),
    keys.names,
    fn.nspname,
    fc.relname,
    referenced.names,
    con.confupdtype,
    con.confdeltype,
    set_columns.names,
    con.confmatchtype = 'f',
    con.condeferrable,
    con.condeferred,
    con.convalidated,
    -- From version 18 on a constraint may be there and not be enforced.
    coalesce((pg_catalog.to_jsonb(con) ->> 'conenforced')::boolean, true)
FROM pg_catalog.pg_constraint AS con
JOIN pg_catalog.pg_class AS c ON c.oid = con.conrelid
LEFT JOIN pg_catalog.pg_class AS fc ON fc.oid = con.confrelid
LEFT JOIN pg_catalog.pg_namespace AS fn ON fn.oid = fc.relnamespace
CROSS JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY k.number) AS names
    FROM unnest(con.conkey) WITH ORDINALITY AS k (attnum, number)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = con.conrelid AND a.attnum = k.attnum
) AS keys
CROSS JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY k.number) AS names
    FROM unnest(con.confkey) WITH ORDINALITY AS k (attnum, number)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = con.confrelid AND a.attnum = k.attnum
) AS referenced
CROSS JOIN LATERAL (
    -- confdelsetcols is there from version 15 on.
    SELECT array_agg(a.attname::text ORDER BY k.number) AS names
    FROM pg_catalog.jsonb_array_elements_text(
        nullif(pg_catalog.to_jsonb(con) -> 'confdelsetcols', 'null')
    ) WITH ORDINALITY AS k (attnum, number)
    JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = con.conrelid AND a.attnum = k.attnum::smallint
) AS set_columns
WHERE (con.contype IN ('c', 'f') OR con.contype = 'n' AND NOT con.convalidated)
    AND con.conparentid = 0
    AND c.relkind IN ('r', 'p')
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
ORDER BY con.conrelid, con.conname
