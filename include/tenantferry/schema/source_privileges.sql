-- What the migration role needs on a source. Run once per source database, as a superuser:
--   psql -v owner=acme_owner -f source_privileges.sql acme
-- The login itself (LOGIN REPLICATION PASSWORD ...) is made by the administrator before.
--
-- owner: the role that owns the database and its tables.

-- Publications, replica identities and the fence belong to the owner.
GRANT :"owner" TO tenantferry;
-- See which session holds a pause; end what is left behind the fence.
GRANT pg_monitor, pg_signal_backend TO tenantferry;
SELECT format('GRANT CONNECT, CREATE ON DATABASE %I TO tenantferry', current_database()) \gexec
-- The way back: foreign keys and user triggers do not fire while the reverse stream applies. On
-- PostgreSQL 14 only a superuser may do that.
SELECT 'GRANT SET ON PARAMETER session_replication_role TO tenantferry'
    WHERE current_setting('server_version_num')::integer >= 150000 \gexec
