-- Whose rows a session may see: the schema "app". Applied again at every preparation; each
-- statement may run twice. No parameters.
--
-- Invariant: a session that is not told whose it is sees no row. For a tenant's own role the
-- tenant follows from the role alone; a setting counts only for a shared role. And nobody speaks for
-- a tenant whose login was taken away: the fence of a rollback rests on that.

CREATE SCHEMA IF NOT EXISTS app;
COMMENT ON SCHEMA app IS 'Isolation of the tenants. Only the migration role may write here.';

-- A tenant's own login role, its tenant, and the schema of its sequences.
CREATE TABLE IF NOT EXISTS app.tenant_roles (
    role_name    name PRIMARY KEY,
    tenant_id    uuid NOT NULL,
    schema_name  name NOT NULL
);

CREATE INDEX IF NOT EXISTS tenant_roles_tenant_idx ON app.tenant_roles (tenant_id);

-- Roles that name their tenant with SET LOCAL app.tenant_id.
CREATE TABLE IF NOT EXISTS app.shared_roles (
    role_name    name PRIMARY KEY
);

-- Not SECURITY DEFINER: inside such a function current_user would be the owner.
-- PL/pgSQL keeps the plans of its queries; it runs once per query below (SELECT ...).
CREATE OR REPLACE FUNCTION app.current_tenant() RETURNS uuid
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog
AS $function$
DECLARE
    found_id uuid;
BEGIN
    -- Who logged in, not as whom it works now: the migration role looks as the role of a tenant that
    -- is not live yet.
    IF NOT EXISTS (
        SELECT FROM pg_roles AS r WHERE r.rolname = session_user AND r.rolcanlogin
    ) THEN
        RETURN NULL;
    END IF;
    SELECT r.tenant_id INTO found_id
    FROM app.tenant_roles AS r
    WHERE r.role_name = current_user;
    IF found_id IS NOT NULL THEN
        RETURN found_id;
    END IF;
    IF EXISTS (SELECT FROM app.shared_roles AS r WHERE r.role_name = current_user) THEN
        RETURN nullif(current_setting('app.tenant_id', true), '')::uuid;
    END IF;
    RETURN NULL;
END
$function$;
COMMENT ON FUNCTION app.current_tenant() IS 'The tenant that this session speaks as, or null.';

-- nextval() stays that of the tenant's own sequence, so currval() and lastval() go on working.
CREATE OR REPLACE FUNCTION app.next_value(sequence_name text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog
AS $function$
DECLARE
    own_id uuid := app.current_tenant();
    found_schema name;
BEGIN
    SELECT r.schema_name INTO found_schema
    FROM app.tenant_roles AS r
    WHERE r.tenant_id = own_id
    LIMIT 1;
    IF found_schema IS NULL THEN
        RAISE EXCEPTION 'no tenant to take a value of sequence "%" for', sequence_name
            USING ERRCODE = 'insufficient_privilege',
                HINT = 'Log in as the role of a tenant, or SET LOCAL app.tenant_id as a shared role.';
    END IF;
    RETURN nextval(format('%I.%I', found_schema, sequence_name)::regclass);
END
$function$;
COMMENT ON FUNCTION app.next_value(text) IS 'The next value of a sequence of the tenant.';

-- A role sees its own entry, and a shared role that of the tenant it speaks as. The owner, the
-- migration role, has BYPASSRLS.
-- Only once: it locks out every reader, and each query of a tenant reads these tables.
DO $do$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_policy
        WHERE polrelid = 'app.shared_roles'::pg_catalog.regclass AND polname = 'own_role'
    ) THEN
        ALTER TABLE app.tenant_roles ENABLE ROW LEVEL SECURITY;
        ALTER TABLE app.shared_roles ENABLE ROW LEVEL SECURITY;
        CREATE POLICY own_role ON app.shared_roles FOR SELECT USING (role_name = current_user);
        CREATE POLICY own_role ON app.tenant_roles FOR SELECT USING (role_name = current_user);
        -- Spelled out: app.current_tenant() reads this table.
        CREATE POLICY spoken_for ON app.tenant_roles FOR SELECT USING (
            tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid
            AND EXISTS (SELECT FROM app.shared_roles AS s WHERE s.role_name = current_user));
    END IF;
END
$do$;

REVOKE ALL ON app.tenant_roles, app.shared_roles FROM PUBLIC;
GRANT USAGE ON SCHEMA app TO PUBLIC;
GRANT SELECT ON app.tenant_roles, app.shared_roles TO PUBLIC;
GRANT EXECUTE ON FUNCTION app.current_tenant(), app.next_value(text) TO PUBLIC;
