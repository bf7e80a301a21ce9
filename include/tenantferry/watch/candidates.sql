-- The tenants whose rows can be compared now, with the direction of the stream that runs: those that
-- are copied, and those in grace; the one whose last comparison, or try, is the longest ago first.
-- With the seconds since the last comparison, and since one could have been made. No parameters.
SELECT
    tenants.tenant,
    streams.direction,
    extract(epoch FROM clock_timestamp() - latest.finished_at)::float8,
    extract(epoch FROM clock_timestamp()
        - greatest(latest.finished_at, coalesce(graces.started_at, tenants.changed_at)))::float8
FROM tenantferry.tenants AS tenants
JOIN tenantferry.streams AS streams ON streams.tenant = tenants.tenant
LEFT JOIN tenantferry.graces AS graces
    ON graces.tenant = tenants.tenant AND graces.ended_at IS NULL AND graces.lost_at IS NULL
LEFT JOIN tenantferry.comparison_tries AS tries ON tries.tenant = tenants.tenant
LEFT JOIN LATERAL (
    SELECT max(validations.finished_at) AS finished_at
    FROM tenantferry.validations AS validations
    WHERE validations.tenant = tenants.tenant AND validations.direction = streams.direction
        AND validations.since IS NULL
) AS latest ON true
WHERE streams.state = 'running' AND CASE streams.direction
    WHEN 'forward' THEN tenants.phase IN ('streaming', 'validated')
    ELSE tenants.phase = 'live' AND graces.id IS NOT NULL
END
ORDER BY greatest(latest.finished_at, tries.tried_at) NULLS FIRST, tenants.tenant
