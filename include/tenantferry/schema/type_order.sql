-- Schema and name of every type; what one is made of comes before it, also where that was made, or
-- became a part of it, later.
-- schemas: oids of the schemas to read.
WITH RECURSIVE parts (whole, part) AS (
    SELECT coalesce(c.reltype, d.objid), d.refobjid
    FROM pg_catalog.pg_depend AS d
    LEFT JOIN pg_catalog.pg_class AS c
        ON d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.objid
        AND c.relkind = 'c'
    WHERE d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass
        AND (d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass OR c.oid IS NOT NULL)
),
levels (type, level) AS (
    SELECT t.oid, 0
    FROM pg_catalog.pg_type AS t
    UNION
    SELECT parts.whole, levels.level + 1
    FROM levels
    JOIN parts ON parts.part = levels.type AND parts.whole <> levels.type
)
SELECT n.nspname, t.typname
FROM levels
JOIN pg_catalog.pg_type AS t ON t.oid = levels.type
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
WHERE t.typnamespace = ANY (%(schemas)s::oid[])
GROUP BY n.nspname, t.typname
ORDER BY max(levels.level), n.nspname, t.typname
