-- Of each column of a table: the value that rows have which are older than the column, and whether
-- the column before it is gone, so that this one may stand in its place.
-- Parameters: schema, name.
SELECT
    attributes.attname::text,
    (attributes.attmissingval::text::text[])[1],
    coalesce(before.attisdropped, false)
FROM pg_catalog.pg_attribute AS attributes
JOIN pg_catalog.pg_class AS classes ON classes.oid = attributes.attrelid
JOIN pg_catalog.pg_namespace AS schemas ON schemas.oid = classes.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS before
    ON before.attrelid = attributes.attrelid AND before.attnum = attributes.attnum - 1
WHERE schemas.nspname = %s AND classes.relname = %s
    AND attributes.attnum > 0 AND NOT attributes.attisdropped
