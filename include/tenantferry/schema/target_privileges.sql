-- What the migration role needs in the target. Run once, as a superuser, in the target database:
--   psql -f target_privileges.sql shared
-- The login itself (LOGIN PASSWORD ...) is made by the administrator before.

-- CREATEROLE: one role per tenant. BYPASSRLS: COPY FROM refuses a table with row security.
-- REPLICATION: the reverse streams read what was written since the cutover.
ALTER ROLE tenantferry CREATEROLE BYPASSRLS REPLICATION;
SELECT format('GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO tenantferry', current_database()) \gexec
GRANT USAGE, CREATE ON SCHEMA public TO tenantferry;
-- Foreign keys and user triggers do not fire while rows are loaded and applied.
GRANT SET ON PARAMETER session_replication_role TO tenantferry;
-- The position of a stream is stored with its rows.
GRANT EXECUTE ON FUNCTION
    pg_replication_origin_create(text),
    pg_replication_origin_drop(text),
    pg_replication_origin_oid(text),
    pg_replication_origin_session_setup(text),
    pg_replication_origin_session_reset(),
    pg_replication_origin_session_is_setup(),
    pg_replication_origin_session_progress(boolean),
    pg_replication_origin_xact_setup(pg_lsn, timestamptz),
    pg_replication_origin_xact_reset(),
    pg_replication_origin_advance(text, pg_lsn),
    pg_replication_origin_progress(text, boolean)
TO tenantferry;
GRANT pg_monitor, pg_signal_backend TO tenantferry;
