-- What preflight asks of a target that is not in its schema: one JSON object.
-- origin: the tenant's own replication origin; witness_slot: its slot in the target; witness: whether
-- the move is to have one; extensions: names the source uses.
SELECT pg_catalog.jsonb_build_object(
    'standby', pg_catalog.pg_is_in_recovery(),
    'encoding', pg_catalog.getdatabaseencoding(),
    'collation', (
        -- Version 15 came with datlocprovider, and 17 with another name for the locale.
        SELECT CASE pg_catalog.to_jsonb(d) ->> 'datlocprovider'
            WHEN 'i' THEN 'ICU ' || coalesce(
                pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale')
            WHEN 'b' THEN 'builtin ' || (pg_catalog.to_jsonb(d) ->> 'datlocale')
            ELSE d.datcollate END
        FROM pg_catalog.pg_database AS d
        WHERE d.datname = current_database()),
    'max_origins', coalesce(
        current_setting('max_active_replication_origins', true),
        current_setting('max_replication_slots'))::integer,
    'used_origins', (
        SELECT count(*) FROM pg_catalog.pg_replication_origin AS o WHERE o.roname <> %(origin)s),
    'wal_level', current_setting('wal_level'),
    'max_slots', current_setting('max_replication_slots')::integer,
    'used_slots', (
        SELECT count(*) FROM pg_catalog.pg_replication_slots AS s
        WHERE s.slot_name <> ALL (ARRAY['tenantferry_reverse', %(witness_slot)s])),
    'witness', %(witness)s::boolean,
    'replication', r.rolreplication OR r.rolsuper,
    'bypassrls', r.rolbypassrls OR r.rolsuper,
    'sees_standbys', pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'),
    'createrole', r.rolcreaterole OR r.rolsuper,
    'create', pg_catalog.has_database_privilege(current_database(), 'CREATE'),
    'replica_role', pg_catalog.has_parameter_privilege('session_replication_role', 'SET'),
    'missing_functions', (
        SELECT pg_catalog.jsonb_agg(p.oid::pg_catalog.regprocedure::text)
        FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
            AND p.proname = ANY (ARRAY[
                'pg_replication_origin_create', 'pg_replication_origin_drop',
                'pg_replication_origin_oid', 'pg_replication_origin_session_setup',
                'pg_replication_origin_session_reset', 'pg_replication_origin_session_progress',
                'pg_replication_origin_xact_setup', 'pg_replication_origin_advance',
                'pg_replication_origin_progress'])
            AND NOT pg_catalog.has_function_privilege(p.oid, 'EXECUTE')),
    'members', (
        SELECT pg_catalog.jsonb_agg(DISTINCT member.rolname)
        FROM pg_catalog.pg_auth_members AS m
        JOIN pg_catalog.pg_roles AS member ON member.oid = m.member
        WHERE m.roleid = r.oid AND NOT member.rolsuper),
    'foreign_owners', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
            n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner)))
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
            AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')),
    'unusable_schemas', (
        SELECT pg_catalog.jsonb_agg(n.nspname)
        FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname = ANY (%(schemas)s::text[])
            AND NOT pg_catalog.has_schema_privilege(n.oid, 'CREATE')),
    'open_schemas', (
        SELECT pg_catalog.jsonb_agg(n.nspname)
        FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname = ANY (%(schemas)s::text[] || ARRAY['public', 'app'])
            AND pg_catalog.has_schema_privilege('public', n.oid, 'CREATE')),
    'missing_extensions', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(wanted.name, EXISTS (
            SELECT FROM pg_catalog.pg_available_extension_versions AS v
            WHERE v.name = wanted.name), r.rolsuper OR EXISTS (
            SELECT FROM pg_catalog.pg_available_extension_versions AS v
            WHERE v.name = wanted.name AND (v.trusted OR NOT v.superuser))))
        FROM unnest(%(extensions)s::text[]) AS wanted (name)
        WHERE NOT EXISTS (
            SELECT FROM pg_catalog.pg_extension AS e WHERE e.extname = wanted.name))
)
FROM pg_catalog.pg_roles AS r
WHERE r.rolname = current_user
