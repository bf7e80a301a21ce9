-- The last time that a wave started each tenant, with the columns of an Attempt. No parameters.
SELECT DISTINCT ON (m.tenant)
    m.tenant,
    m.wave,
    coalesce(m.standing, 'running'), -- there may be a run
    m.since,
    coalesce(m.detail, ''),
    m.alone
FROM tenantferry.wave_members AS m
WHERE m.started_at IS NOT NULL
ORDER BY m.tenant, m.wave DESC
