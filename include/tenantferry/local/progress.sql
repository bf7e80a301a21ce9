-- One row per registered tenant: where its move stands. No parameters.

SELECT
    t.tenant,
    t.phase,
    coalesce(c.rows, 0)::bigint AS rows,
    coalesce(c.estimated_rows, 0)::bigint AS estimated_rows,
    coalesce(c.done = c.chunks, false) AS is_copied,
    s.lag_seconds,
    coalesce(s.changes, 0) AS changes,
    s.error
FROM tenantferry.tenants AS t
LEFT JOIN (
    SELECT tenant, sum(rows) AS rows, sum(estimated_rows) AS estimated_rows,
           count(done_at) AS done, count(*) AS chunks
    FROM tenantferry.chunks GROUP BY tenant
) AS c USING (tenant)
LEFT JOIN tenantferry.streams AS s USING (tenant)
ORDER BY t.created_at
