-- The tenants whose rows can be compared now, with the direction of the stream that runs: those that
-- are copied, and those in grace; the one whose last comparison is the longest ago first.
-- No parameters.
SELECT
    tenants.tenant,
    streams.direction,
    extract(epoch FROM clock_timestamp() - latest.finished_at)::float8
FROM tenantferry.tenants AS tenants
JOIN tenantferry.streams AS streams ON streams.tenant = tenants.tenant
LEFT JOIN tenantferry.graces AS graces
    ON graces.tenant = tenants.tenant AND graces.ended_at IS NULL AND graces.lost_at IS NULL
LEFT JOIN LATERAL (
    SELECT max(validations.finished_at) AS finished_at
    FROM tenantferry.validations AS validations
    WHERE validations.tenant = tenants.tenant AND validations.direction = streams.direction
) AS latest ON true
WHERE streams.state = 'running' AND CASE streams.direction
    WHEN 'forward' THEN tenants.phase IN ('streaming', 'validated')
    ELSE tenants.phase = 'live' AND graces.id IS NOT NULL
END
ORDER BY latest.finished_at NULLS FIRST, tenants.tenant
