-- What the retrofit leaves behind: kind, schema, name, table.
-- schemas: oids of the schemas to read.
WITH found (kind, classid, oid, namespace, name, table_name) AS (
    SELECT
        CASE c.relkind
            WHEN 'f' THEN 'foreign table'
            WHEN 'm' THEN 'materialized view'
            ELSE 'unlogged table'
        END,
        'pg_catalog.pg_class'::pg_catalog.regclass, c.oid, c.relnamespace, c.relname, c.relname
    FROM pg_catalog.pg_class AS c
    WHERE NOT c.relispartition
        AND (c.relkind IN ('f', 'm') OR c.relkind IN ('r', 'p') AND c.relpersistence = 'u')
    UNION ALL
    SELECT 'rule', 'pg_catalog.pg_rewrite'::pg_catalog.regclass, r.oid, c.relnamespace,
        r.rulename, c.relname
    FROM pg_catalog.pg_rewrite AS r
    JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class
    WHERE r.rulename <> '_RETURN'
    UNION ALL
    SELECT 'row security policy', 'pg_catalog.pg_policy'::pg_catalog.regclass, p.oid,
        c.relnamespace, p.polname, c.relname
    FROM pg_catalog.pg_policy AS p
    JOIN pg_catalog.pg_class AS c ON c.oid = p.polrelid
    UNION ALL
    SELECT 'temporal constraint', 'pg_catalog.pg_constraint'::pg_catalog.regclass, con.oid,
        con.connamespace, con.conname, c.relname
    FROM pg_catalog.pg_constraint AS con
    JOIN pg_catalog.pg_class AS c ON c.oid = con.conrelid
    WHERE con.contype IN ('p', 'u', 'f')
        AND NOT c.relispartition
        AND coalesce((pg_catalog.to_jsonb(con) ->> 'conperiod')::boolean, false)
    UNION ALL
    SELECT 'range type', 'pg_catalog.pg_type'::pg_catalog.regclass, t.oid, t.typnamespace,
        t.typname, NULL
    FROM pg_catalog.pg_range AS r
    JOIN pg_catalog.pg_type AS t ON t.oid = r.rngtypid
    LEFT JOIN pg_catalog.pg_proc AS diff ON diff.oid = r.rngsubdiff
    WHERE r.rngcanonical <> 0 OR diff.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace
    UNION ALL
    SELECT 'collation', 'pg_catalog.pg_collation'::pg_catalog.regclass, co.oid,
        co.collnamespace, co.collname, NULL
    FROM pg_catalog.pg_collation AS co
    UNION ALL
    SELECT 'aggregate', 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oid, p.pronamespace,
        p.proname, NULL
    FROM pg_catalog.pg_proc AS p
    WHERE p.prokind = 'a'
    UNION ALL
    SELECT 'operator', 'pg_catalog.pg_operator'::pg_catalog.regclass, op.oid, op.oprnamespace,
        op.oprname, NULL
    FROM pg_catalog.pg_operator AS op
    UNION ALL
    SELECT 'extended statistics', 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, s.oid,
        s.stxnamespace, s.stxname, c.relname
    FROM pg_catalog.pg_statistic_ext AS s
    JOIN pg_catalog.pg_class AS c ON c.oid = s.stxrelid
)
SELECT f.kind, n.nspname, f.name, f.table_name
FROM found AS f
JOIN pg_catalog.pg_namespace AS n ON n.oid = f.namespace
WHERE f.namespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = f.classid AND d.objid = f.oid AND d.deptype = 'e')
ORDER BY f.kind, n.nspname, f.name
