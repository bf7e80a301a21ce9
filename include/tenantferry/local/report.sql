-- One row per registered tenant: what its move was. No parameters.

SELECT
    t.tenant,
    t.phase,
    coalesce(c.tables, 0) AS tables,
    coalesce(c.rows, 0)::bigint AS rows,
    coalesce(c.bytes, 0)::bigint AS bytes,
    coalesce(r.seconds, 0)::double precision AS backfill_seconds,
    coalesce(s.changes, 0) AS changes_streamed,
    v.tables AS validated_tables,
    v.chunks AS validated_chunks,
    v.rows AS validated_rows,
    v.mismatches,
    v.seconds AS validation_seconds,
    p.write_pause_ms,
    coalesce(turns.turns, '[]'::jsonb) AS turns
FROM tenantferry.tenants AS t
LEFT JOIN (
    SELECT tenant, count(DISTINCT (table_schema, table_name)) AS tables, sum(rows) AS rows,
           sum(bytes) AS bytes
    FROM tenantferry.chunks WHERE done_at IS NOT NULL GROUP BY tenant
) AS c USING (tenant)
LEFT JOIN (
    SELECT tenant, extract(epoch FROM sum(finished_at - started_at)) AS seconds
    FROM tenantferry.rounds WHERE finished_at IS NOT NULL GROUP BY tenant
) AS r USING (tenant)
LEFT JOIN tenantferry.streams AS s ON s.tenant = t.tenant AND s.direction = 'forward'
-- The last one of everything, and what was found since: both are what the cutover relied on.
LEFT JOIN LATERAL (
    SELECT tables, chunks, rows,
           extract(epoch FROM finished_at - started_at)::double precision AS seconds,
           (SELECT sum(mismatches) FROM tenantferry.validations
            WHERE tenant = t.tenant AND direction = 'forward' AND id >= whole.id)::bigint
               AS mismatches
    FROM tenantferry.validations AS whole
    WHERE tenant = t.tenant AND direction = 'forward' AND since IS NULL ORDER BY id DESC LIMIT 1
) AS v ON true
-- As a client feels it: from the moment we began to pause, not from when the last one was paused.
LEFT JOIN LATERAL (
    SELECT (1000 * extract(epoch FROM resumed_at - began_at))::double precision AS write_pause_ms
    FROM tenantferry.write_pauses
    WHERE tenant = t.tenant AND flipped_at IS NOT NULL AND resumed_at IS NOT NULL
    ORDER BY id DESC LIMIT 1
) AS p ON true
-- Every time that the clients were moved, there and back.
LEFT JOIN LATERAL (
    SELECT jsonb_agg(
        jsonb_build_object(
            'direction', direction,
            'write_pause_ms', round(1000 * extract(epoch FROM resumed_at - began_at), 1)
        ) ORDER BY id
    ) AS turns
    FROM tenantferry.write_pauses
    WHERE tenant = t.tenant AND flipped_at IS NOT NULL AND resumed_at IS NOT NULL
) AS turns ON true
ORDER BY t.created_at
