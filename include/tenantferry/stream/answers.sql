-- Report what a stream does, and read what it is told. Named parameters: see answers.py.
UPDATE tenantferry.streams AS streams SET
    state = %(state)s,
    reported_at = clock_timestamp(),
    confirmed = greatest(streams.confirmed, %(confirmed)s::pg_lsn),
    lag_seconds = %(lag_seconds)s,
    lag_measured_at = clock_timestamp() - make_interval(secs => %(lag_age_seconds)s),
    lag_bytes = %(lag_bytes)s
WHERE streams.tenant = %(tenant)s AND streams.direction = 'forward'
RETURNING
    streams.command, streams.command_lsn::text, streams.command_id,
    coalesce(streams.lease_until <= clock_timestamp(), false)
