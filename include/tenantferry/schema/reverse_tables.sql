-- The tables that hold rows of tenants, those that our retrofit made: with row security by
-- tenant_id. Of each: schema, name, whether its replica identity will do, the unique index that
-- could be it, whether that is the primary key, whether generated columns are stored and whether
-- they are virtual, whether the table is published.
-- publication: name of the reverse publication; full_sends_generated: whether the server refuses
-- UPDATE under the identity FULL where generated columns are not sent (PostgreSQL 18).
WITH tables AS (
    SELECT
        c.oid, n.nspname, c.relname, c.relreplident, a.attnum AS tenant_column,
        EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS g
            WHERE g.attrelid = c.oid AND g.attgenerated = 's' AND NOT g.attisdropped) AS stored,
        EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS g
            WHERE g.attrelid = c.oid AND g.attgenerated = 'v' AND NOT g.attisdropped) AS virtual
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute AS a
        ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND a.attnotnull
        AND a.atttypid = 'pg_catalog.uuid'::pg_catalog.regtype AND NOT a.attisdropped
    WHERE c.relkind = 'r'
        AND c.relpersistence = 'p'
        AND c.relrowsecurity
        AND c.relforcerowsecurity
        AND EXISTS (
            SELECT FROM pg_catalog.pg_policy AS p
            WHERE p.polrelid = c.oid AND p.polname = 'tenant_isolation')
),
-- Indexes that tell rows apart, tenants included. A generated column cannot: it is not sent.
usable AS (
    SELECT ix.indrelid, ic.relname, ix.indisprimary, ix.indisreplident, ix.indnkeyatts
    FROM tables AS t
    JOIN pg_catalog.pg_index AS ix ON ix.indrelid = t.oid
    JOIN pg_catalog.pg_class AS ic ON ic.oid = ix.indexrelid
    JOIN pg_catalog.pg_am AS am ON am.oid = ic.relam AND am.amname = 'btree'
    WHERE ix.indisunique AND ix.indimmediate AND ix.indisvalid
        AND ix.indpred IS NULL AND ix.indexprs IS NULL
        AND t.tenant_column = ANY ((ix.indkey::int2[])[0:ix.indnkeyatts - 1])
        AND NOT EXISTS (
            SELECT FROM unnest((ix.indkey::int2[])[0:ix.indnkeyatts - 1]) AS keys (attnum)
            JOIN pg_catalog.pg_attribute AS a
                ON a.attrelid = ix.indrelid AND a.attnum = keys.attnum
            WHERE NOT a.attnotnull OR a.attgenerated <> '')
)
SELECT
    t.nspname,
    t.relname,
    CASE t.relreplident
        WHEN 'd' THEN EXISTS (SELECT FROM usable AS u WHERE u.indrelid = t.oid AND u.indisprimary)
        WHEN 'i' THEN EXISTS (SELECT FROM usable AS u WHERE u.indrelid = t.oid AND u.indisreplident)
        WHEN 'f' THEN NOT (%(full_sends_generated)s
            AND (t.virtual OR t.stored AND best.relname IS NOT NULL))
        ELSE false
    END,
    best.relname,
    coalesce(best.indisprimary, false),
    t.stored,
    t.virtual,
    EXISTS (
        SELECT FROM pg_catalog.pg_publication_rel AS pr
        JOIN pg_catalog.pg_publication AS p ON p.oid = pr.prpubid
        WHERE pr.prrelid = t.oid AND p.pubname = %(publication)s)
FROM tables AS t
LEFT JOIN LATERAL (
    SELECT u.relname, u.indisprimary
    FROM usable AS u
    WHERE u.indrelid = t.oid
    ORDER BY u.indisprimary DESC, u.indnkeyatts, u.relname
    LIMIT 1
) AS best ON true
ORDER BY t.nspname, t.relname
