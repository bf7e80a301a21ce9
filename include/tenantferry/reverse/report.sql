-- Report what the reverse streams do, all in one, and read what they are told. A row that somebody
-- else holds at the moment, e.g. who ends its grace, is left for the next time: nobody waits.
-- tenants, states, positions, source_positions (what the sources themselves have recorded), changes,
-- transactions, commit_times (of the oldest transaction that waits, microseconds since 2000-01-01
-- UTC), errors: arrays, one element per stream; confirmed, seen (end of the log as far as it is
-- known), read_lag_seconds: of all.
WITH reported AS (
    SELECT *
    FROM unnest(
        %(tenants)s::text[], %(states)s::text[], %(positions)s::pg_lsn[],
        %(source_positions)s::pg_lsn[], %(changes)s::bigint[], %(transactions)s::bigint[],
        %(commit_times)s::bigint[], %(errors)s::text[]
    ) AS r (
        tenant, state, position, source_position, changes, transactions, commit_time, error)
),
free AS (
    SELECT streams.tenant
    FROM tenantferry.streams AS streams
    JOIN reported ON reported.tenant = streams.tenant
    WHERE streams.direction = 'reverse'
    FOR NO KEY UPDATE OF streams SKIP LOCKED
)
UPDATE tenantferry.streams AS streams SET
    state = reported.state,
    position = greatest(streams.position, reported.position),
    source_position = greatest(streams.source_position, reported.source_position),
    confirmed = greatest(streams.confirmed, %(confirmed)s::pg_lsn),
    changes = coalesce(reported.changes, streams.changes),
    transactions = coalesce(reported.transactions, streams.transactions),
    lag_seconds = greatest(%(read_lag_seconds)s::double precision, waiting.seconds),
    lag_measured_at = clock_timestamp(),
    lag_bytes = greatest(0, %(seen)s::pg_lsn - reported.position),
    reported_at = clock_timestamp(),
    error = reported.error
FROM reported
JOIN free ON free.tenant = reported.tenant
CROSS JOIN LATERAL (
    SELECT extract(epoch FROM clock_timestamp() - timestamptz '2000-01-01 00:00:00+00')
        - reported.commit_time / 1000000.0 AS seconds
) AS waiting
WHERE streams.tenant = reported.tenant AND streams.direction = 'reverse'
RETURNING
    streams.tenant, streams.command, streams.command_lsn::text, streams.command_id,
    coalesce(streams.lease_until <= clock_timestamp(), false)
