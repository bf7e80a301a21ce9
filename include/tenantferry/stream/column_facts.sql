-- Of each column of a table: its type; the value that rows have which are older than the column; its
-- default for new rows; whether new rows take a value of a sequence; and whether the column before
-- it is gone, so that this one may stand in its place.
-- Parameters: schema, name.
SELECT
    attributes.attname::text,
    pg_catalog.format_type(attributes.atttypid, attributes.atttypmod),
    -- Its one element, whatever it is.
    pg_catalog.array_to_string(attributes.attmissingval, ''),
    defaults.expression,
    attributes.attidentity <> '' OR coalesce(position('nextval(' IN defaults.expression) > 0, false),
    coalesce(before.attisdropped, false)
FROM pg_catalog.pg_attribute AS attributes
JOIN pg_catalog.pg_class AS classes ON classes.oid = attributes.attrelid
JOIN pg_catalog.pg_namespace AS schemas ON schemas.oid = classes.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS before
    ON before.attrelid = attributes.attrelid AND before.attnum = attributes.attnum - 1
LEFT JOIN LATERAL (
    SELECT pg_catalog.pg_get_expr(attrdef.adbin, attrdef.adrelid) AS expression
    FROM pg_catalog.pg_attrdef AS attrdef
    -- What a generated column has there is no default.
    WHERE attrdef.adrelid = attributes.attrelid AND attrdef.adnum = attributes.attnum
        AND attributes.attgenerated = ''
) AS defaults ON true
WHERE schemas.nspname = %s AND classes.relname = %s
    AND attributes.attnum > 0 AND NOT attributes.attisdropped
