-- Remove from the target what a move that was given up has left there: the tenant's rows and what
-- the control schema knows. Its role, its sequences and the tables stay; the next move finds them.
-- Run in the target, as tenantferry, after the run has been ended:
--   psql -v tenant=acme -f scripts/give_up_target.sql shared
--
-- tenant: key of the tenant. May run twice.

\set ON_ERROR_STOP on

SELECT tenant, tenant_id, phase, changed_at FROM tenantferry.tenants WHERE tenant = :'tenant';

-- The rows of a tenant that is live are the only ones it has.
SELECT set_config('tenantferry.given_up', :'tenant', false) \g /dev/null
DO $do$
BEGIN
    IF EXISTS (
        SELECT FROM tenantferry.tenants
        WHERE tenant = current_setting('tenantferry.given_up')
            AND phase IN ('cutting_over', 'live')
    ) THEN
        RAISE EXCEPTION 'tenant "%" cannot be given up',
            current_setting('tenantferry.given_up')
            USING DETAIL = 'It is live in the target, or being cut over.';
    END IF;
END
$do$;

-- First what allows to write: a chunk needs its mark and a stream needs its position.
BEGIN;
SELECT phase FROM tenantferry.tenants
WHERE tenant = :'tenant' AND phase NOT IN ('cutting_over', 'live') FOR UPDATE \g /dev/null
DELETE FROM tenantferry.chunks WHERE tenant = :'tenant';
DELETE FROM tenantferry.rounds WHERE tenant = :'tenant';
DELETE FROM tenantferry.streams WHERE tenant = :'tenant';
SELECT pg_replication_origin_drop('tenantferry_' || :'tenant')
WHERE pg_replication_origin_oid('tenantferry_' || :'tenant') IS NOT NULL \g /dev/null
COMMIT;

-- All tables of tenants, in any order: foreign keys and triggers do not fire.
SET session_replication_role = replica;
SELECT format('DELETE FROM %s WHERE tenant_id = %L', c.oid::regclass, t.tenant_id)
FROM tenantferry.tenants AS t, pg_catalog.pg_class AS c
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
WHERE t.tenant = :'tenant' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relnamespace::regnamespace::text NOT IN ('app', 'tenantferry')
    AND a.attname = 'tenant_id' AND a.atttypid = 'uuid'::regtype AND NOT a.attisdropped
\gexec

-- Last, as it says whose the rows were.
BEGIN;
DELETE FROM tenantferry.mismatches WHERE validation_id IN (
    SELECT id FROM tenantferry.validations WHERE tenant = :'tenant');
DELETE FROM tenantferry.validations WHERE tenant = :'tenant';
DELETE FROM tenantferry.write_pauses WHERE tenant = :'tenant';
DELETE FROM tenantferry.phase_changes WHERE tenant = :'tenant';
DELETE FROM tenantferry.tenants WHERE tenant = :'tenant';
COMMIT;
