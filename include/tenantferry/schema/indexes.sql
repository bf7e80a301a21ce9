-- Valid indexes of ordinary and partitioned tables, with the constraint that owns each, if any.
-- schemas: oids of the schemas to read.
SELECT
    ix.indrelid,
    ic.relname,
    am.amname,
    ix.indisunique,
    ix.indimmediate,
    ix.indisreplident,
    ix.indexprs IS NOT NULL,
    coalesce((pg_catalog.to_jsonb(ix) ->> 'indnullsnotdistinct')::boolean, false),
    pg_catalog.pg_get_expr(ix.indpred, ix.indrelid),
    con.contype,
    con.conname,
    coalesce(con.condeferrable, false),
    coalesce(con.condeferred, false),
    coalesce((pg_catalog.to_jsonb(con) ->> 'conperiod')::boolean, false),
    elements.texts,
    elements.columns,
    elements.operators,
    elements.included
FROM pg_catalog.pg_index AS ix
JOIN pg_catalog.pg_class AS ic ON ic.oid = ix.indexrelid
JOIN pg_catalog.pg_class AS c ON c.oid = ix.indrelid
JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam
LEFT JOIN pg_catalog.pg_constraint AS con
    ON con.conindid = ix.indexrelid AND con.conrelid = ix.indrelid
    AND con.contype IN ('p', 'u', 'x')
CROSS JOIN LATERAL (
    SELECT
        array_agg(e.text ORDER BY e.number) FILTER (WHERE e.number <= ix.indnkeyatts) AS texts,
        array_agg(e.attname::text ORDER BY e.number)
            FILTER (WHERE e.number <= ix.indnkeyatts) AS columns,
        array_agg(e.operator ORDER BY e.number)
            FILTER (WHERE e.number <= ix.indnkeyatts) AS operators,
        array_agg(e.attname::text ORDER BY e.number)
            FILTER (WHERE e.number > ix.indnkeyatts) AS included
    FROM (
        SELECT
            n.number,
            a.attname,
            CASE WHEN opn.nspname = 'pg_catalog' THEN op.oprname::text
                WHEN op.oid IS NOT NULL THEN
                    'OPERATOR(' || pg_catalog.quote_ident(opn.nspname) || '.' || op.oprname || ')'
            END AS operator,
            pg_catalog.pg_get_indexdef(ix.indexrelid, n.number, false)
            || CASE WHEN co.oid IS NOT NULL THEN ' COLLATE '
                || pg_catalog.quote_ident(con_n.nspname) || '.'
                || pg_catalog.quote_ident(co.collname) ELSE '' END
            || CASE WHEN NOT oc.opcdefault OR ia.attoptions IS NOT NULL THEN ' '
                || pg_catalog.quote_ident(ocn.nspname) || '.' || pg_catalog.quote_ident(oc.opcname)
                ELSE '' END
            || CASE WHEN ia.attoptions IS NOT NULL THEN ' (' || (
                SELECT string_agg(pg_catalog.quote_ident(o.option_name) || '='
                    || pg_catalog.quote_literal(o.option_value), ', ')
                FROM pg_catalog.pg_options_to_table(ia.attoptions) AS o) || ')' ELSE '' END
            || CASE ix.indoption[n.number - 1] & 3
                WHEN 1 THEN ' DESC NULLS LAST'
                WHEN 2 THEN ' NULLS FIRST'
                WHEN 3 THEN ' DESC'
                ELSE '' END AS text
        FROM generate_series(1, ix.indnatts) AS n (number)
        JOIN pg_catalog.pg_attribute AS ia ON ia.attrelid = ix.indexrelid AND ia.attnum = n.number
        JOIN pg_catalog.pg_type AS it ON it.oid = ia.atttypid
        LEFT JOIN pg_catalog.pg_attribute AS a
            ON a.attrelid = ix.indrelid AND a.attnum = ix.indkey[n.number - 1] AND a.attnum <> 0
        LEFT JOIN pg_catalog.pg_opclass AS oc ON oc.oid = ix.indclass[n.number - 1]
        LEFT JOIN pg_catalog.pg_namespace AS ocn ON ocn.oid = oc.opcnamespace
        LEFT JOIN pg_catalog.pg_collation AS co
            ON co.oid = ix.indcollation[n.number - 1]
            AND co.oid <> coalesce(a.attcollation, it.typcollation)
        LEFT JOIN pg_catalog.pg_namespace AS con_n ON con_n.oid = co.collnamespace
        LEFT JOIN pg_catalog.pg_operator AS op
            ON con.contype = 'x' AND op.oid = con.conexclop[n.number]
        LEFT JOIN pg_catalog.pg_namespace AS opn ON opn.oid = op.oprnamespace
    ) AS e
) AS elements
WHERE c.relkind IN ('r', 'p')
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
    AND ix.indisvalid
ORDER BY ix.indrelid, ic.relname
