-- Where every registered tenant stands, and what people did with it. No parameters.
SELECT t.tenant, t.phase, t.changed_at, c.rolled_back_at, c.given_up_at
FROM tenantferry.tenants AS t
CROSS JOIN LATERAL (
    SELECT
        max(p.changed_at) FILTER (
            WHERE p.from_phase = 'rolling_back' AND p.to_phase <> 'live') AS rolled_back_at,
        max(p.changed_at) FILTER (WHERE p.from_phase = 'aborting') AS given_up_at
    FROM tenantferry.phase_changes AS p
    WHERE p.tenant = t.tenant
) AS c
