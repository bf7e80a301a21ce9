-- Whether a column of some tables holds, somewhere inside an array, a composite or a range, a type
-- that has no binary output: pgoutput fails on such a column when asked for binary values. A column
-- whose own type has none is no obstacle, it comes as text. Parameters: schemas, tables.
WITH RECURSIVE used (type, is_inside) AS (
    SELECT attributes.atttypid, false
    FROM pg_catalog.pg_attribute AS attributes
    JOIN pg_catalog.pg_class AS classes ON classes.oid = attributes.attrelid
    JOIN pg_catalog.pg_namespace AS schemas ON schemas.oid = classes.relnamespace
    JOIN unnest(%s::text[], %s::text[]) AS wanted (schema, name)
        ON wanted.schema = schemas.nspname AND wanted.name = classes.relname
    WHERE attributes.attnum > 0 AND NOT attributes.attisdropped
    UNION
    SELECT inner_types.type, used.is_inside OR types.typtype <> 'd'
    FROM used
    JOIN pg_catalog.pg_type AS types ON types.oid = used.type
    CROSS JOIN LATERAL (
        SELECT types.typelem WHERE types.typelem <> 0
        UNION ALL
        SELECT types.typbasetype WHERE types.typtype = 'd'
        UNION ALL
        SELECT fields.atttypid
        FROM pg_catalog.pg_attribute AS fields
        WHERE types.typtype = 'c' AND fields.attrelid = types.typrelid
            AND fields.attnum > 0 AND NOT fields.attisdropped
        UNION ALL
        SELECT ranges.rngsubtype FROM pg_catalog.pg_range AS ranges
        WHERE types.oid IN (ranges.rngtypid, ranges.rngmultitypid)
    ) AS inner_types (type)
)
SELECT EXISTS (
    SELECT FROM used JOIN pg_catalog.pg_type AS types ON types.oid = used.type
    WHERE used.is_inside AND types.typsend = 0
)
