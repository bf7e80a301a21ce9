-- The row of one stream. Parameters: the tenant's key, the direction.
SELECT
    streams.tenant, streams.direction, streams.position::text, streams.confirmed::text, streams.state,
    streams.command, streams.command_lsn::text, streams.command_id, streams.acknowledged_id,
    streams.lease_until, coalesce(streams.lease_until <= clock_timestamp(), false),
    streams.changes, streams.transactions, streams.lag_seconds, streams.lag_measured_at,
    streams.lag_bytes, streams.reported_at, streams.error, streams.copy_again,
    streams.repairable, (streams.touched_since - '0/0')::bigint,
    (streams.went_back_to - '0/0')::bigint,
    streams.timeline, (streams.timeline_began - '0/0')::bigint
FROM tenantferry.streams
WHERE streams.tenant = %s AND streams.direction = %s
