-- The latest stage, with the columns of a StageFacts. No parameters.
WITH latest AS (
    SELECT w.stage, coalesce(w.stage_wave, w.wave) AS stage_wave, w.stage_size
    FROM tenantferry.waves AS w
    ORDER BY w.wave DESC
    LIMIT 1
),
live AS (
    SELECT DISTINCT m.tenant
    FROM tenantferry.waves AS w
    JOIN latest ON coalesce(w.stage_wave, w.wave) = latest.stage_wave
    JOIN tenantferry.wave_members AS m USING (wave)
    JOIN tenantferry.tenants AS t ON t.tenant = m.tenant
    WHERE m.started_at IS NOT NULL AND t.phase = ANY (ARRAY['live', 'retiring', 'retired'])
)
SELECT
    l.stage,
    l.stage_wave,
    l.stage_size,
    (SELECT count(*) FROM live),
    (SELECT max(p.changed_at)
     FROM tenantferry.phase_changes AS p
     JOIN live USING (tenant)
     WHERE p.from_phase = 'cutting_over' AND p.to_phase = 'live')
FROM latest AS l
