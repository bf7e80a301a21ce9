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
