-- The columns of one table, in order, each with its type as it is below all domains (and the
-- collation, where it is not that type's own), whether that has a binary input, and the schema and
-- name of its own equality operator, where it has one.
-- Parameters: schema, name.
WITH RECURSIVE layers (number, type, typmod) AS (
    SELECT attributes.attnum, attributes.atttypid, attributes.atttypmod
    FROM pg_catalog.pg_attribute AS attributes
    JOIN pg_catalog.pg_class AS classes ON classes.oid = attributes.attrelid
    JOIN pg_catalog.pg_namespace AS schemas ON schemas.oid = classes.relnamespace
    WHERE schemas.nspname = %s AND classes.relname = %s AND classes.relkind IN ('r', 'p')
        AND attributes.attnum > 0 AND NOT attributes.attisdropped
    UNION ALL
    SELECT layers.number, domains.typbasetype,
        CASE WHEN domains.typtypmod >= 0 THEN domains.typtypmod ELSE layers.typmod END
    FROM layers
    JOIN pg_catalog.pg_type AS domains ON domains.oid = layers.type AND domains.typtype = 'd'
)
SELECT
    attributes.attname,
    format_type(attributes.atttypid, attributes.atttypmod),
    format_type(base.oid, layers.typmod) || coalesce(
        (
            SELECT ' COLLATE ' || quote_ident(collation_schemas.nspname) || '.'
                || quote_ident(collations.collname)
            FROM pg_catalog.pg_collation AS collations
            JOIN pg_catalog.pg_namespace AS collation_schemas
                ON collation_schemas.oid = collations.collnamespace
            WHERE collations.oid = attributes.attcollation
                AND collations.oid <> base.typcollation
        ),
        ''
    ),
    attributes.attgenerated <> '',
    attributes.attidentity = 'a',
    base.typreceive <> 0,
    equality.schema,
    equality.name
FROM layers
JOIN pg_catalog.pg_type AS base ON base.oid = layers.type AND base.typtype <> 'd'
JOIN pg_catalog.pg_class AS classes ON true
JOIN pg_catalog.pg_namespace AS schemas ON schemas.oid = classes.relnamespace
JOIN pg_catalog.pg_attribute AS attributes
    ON attributes.attrelid = classes.oid AND attributes.attnum = layers.number
LEFT JOIN LATERAL (
    SELECT operator_schemas.nspname AS schema, operators.oprname AS name
    FROM pg_catalog.pg_opclass AS opclasses
    JOIN pg_catalog.pg_am AS methods
        ON methods.oid = opclasses.opcmethod AND methods.amname = 'btree'
    JOIN pg_catalog.pg_amop AS members
        ON members.amopfamily = opclasses.opcfamily AND members.amopstrategy = 3
        AND members.amoplefttype = base.oid AND members.amoprighttype = base.oid
    JOIN pg_catalog.pg_operator AS operators ON operators.oid = members.amopopr
    JOIN pg_catalog.pg_namespace AS operator_schemas
        ON operator_schemas.oid = operators.oprnamespace
    WHERE opclasses.opcdefault AND opclasses.opcintype = base.oid
) AS equality ON true
WHERE schemas.nspname = %s AND classes.relname = %s AND classes.relkind IN ('r', 'p')
ORDER BY attributes.attnum
