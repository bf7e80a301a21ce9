-- The reader of all reverse streams, with ages in seconds: how many tenants it serves, for how long
-- the oldest of them, when it last reported, what went wrong. No parameters.
SELECT
    graces.tenants,
    graces.seconds,
    extract(epoch FROM clock_timestamp() - slots.reported_at)::float8,
    slots.error
FROM (
    SELECT
        count(*) AS tenants,
        extract(epoch FROM clock_timestamp() - min(started_at))::float8 AS seconds
    FROM tenantferry.graces
    WHERE ended_at IS NULL AND lost_at IS NULL
) AS graces
LEFT JOIN tenantferry.reverse_slot AS slots ON true
