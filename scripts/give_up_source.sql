-- Make a source forget a move that was given up, so that it need not keep its log any longer.
-- Run on the source, in the tenant's database, as a superuser or as tenantferry, after its run has
-- been ended:
--   psql -v tenant=acme -f scripts/give_up_source.sql acme
--
-- tenant: key of the tenant. May run twice.

\set ON_ERROR_STOP on

-- What is there, and how much log the slot keeps.
SELECT slot_name, active,
    pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS keeps
FROM pg_catalog.pg_replication_slots WHERE slot_name = 'tenantferry_' || :'tenant';

-- A slot that is in use cannot be dropped: a stream that still runs shows as an error here.
SELECT pg_drop_replication_slot(slot_name)
FROM pg_catalog.pg_replication_slots WHERE slot_name = 'tenantferry_' || :'tenant';

SELECT format('DROP PUBLICATION IF EXISTS %I', 'tenantferry_' || :'tenant') \gexec
