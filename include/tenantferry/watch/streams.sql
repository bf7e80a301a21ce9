-- The streams that have to run, with ages in seconds: those of tenants that are copied and not live
-- yet, and those of tenants that can go back. "needed" is since when. No parameters.
SELECT
    streams.tenant,
    streams.direction,
    streams.state,
    streams.command,
    streams.error,
    streams.copy_again,
    streams.lag_seconds,
    streams.lag_bytes,
    extract(epoch FROM now.at - streams.lag_measured_at)::float8,
    extract(epoch FROM now.at - streams.reported_at)::float8,
    extract(epoch FROM now.at - streams.lease_until)::float8,
    extract(epoch FROM now.at - coalesce(graces.started_at, tenants.changed_at))::float8,
    CASE WHEN streams.throttled_at > now.at - interval '15 seconds' THEN streams.throttled_by END
FROM tenantferry.streams AS streams
JOIN tenantferry.tenants AS tenants ON tenants.tenant = streams.tenant
LEFT JOIN tenantferry.graces AS graces
    ON graces.tenant = streams.tenant AND graces.ended_at IS NULL
        AND streams.direction = 'reverse'
CROSS JOIN (SELECT clock_timestamp() AS at) AS now
WHERE CASE streams.direction
    WHEN 'forward' THEN tenants.phase IN ('streaming', 'validated')
    ELSE graces.id IS NOT NULL AND graces.lost_at IS NULL AND tenants.phase = 'live'
END
ORDER BY streams.direction, streams.tenant
