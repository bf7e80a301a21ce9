-- What preflight asks of a source that is not in its schema: one JSON object.
-- slot: the tenant's own slot; roles: roles that the application logs in as.
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
    'wal_level', current_setting('wal_level'),
    'max_slots', current_setting('max_replication_slots')::integer,
    'used_slots', (
        SELECT count(*) FROM pg_catalog.pg_replication_slots AS s WHERE s.slot_name <> %(slot)s),
    'max_senders', current_setting('max_wal_senders')::integer,
    'used_senders', (
        SELECT count(*) FROM pg_catalog.pg_stat_activity AS a
        WHERE a.backend_type = 'walsender'
            AND a.pid NOT IN (
                SELECT s.active_pid FROM pg_catalog.pg_replication_slots AS s
                WHERE s.slot_name = %(slot)s AND s.active_pid IS NOT NULL)),
    'slot_keep_size', current_setting('max_slot_wal_keep_size'),
    'slot_idle_timeout', current_setting('idle_replication_slot_timeout', true),
    'replication', (
        SELECT r.rolreplication OR r.rolsuper FROM pg_catalog.pg_roles AS r
        WHERE r.rolname = current_user),
    'create', pg_catalog.has_database_privilege(current_database(), 'CREATE'),
    'monitor', pg_catalog.pg_has_role('pg_monitor', 'USAGE'),
    'signal', pg_catalog.pg_has_role('pg_signal_backend', 'USAGE'),
    'members', (
        SELECT pg_catalog.jsonb_agg(DISTINCT pg_catalog.pg_get_userbyid(m.member))
        FROM pg_catalog.pg_auth_members AS m
        JOIN pg_catalog.pg_roles AS r ON r.oid = m.roleid
        JOIN pg_catalog.pg_roles AS member ON member.oid = m.member
        WHERE r.rolname = current_user AND NOT member.rolsuper),
    'foreign_owners', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
            n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner)))
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
            AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')),
    'forced_row_security', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(n.nspname, c.relname))
        FROM pg_catalog.pg_class AS c
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
            AND c.relrowsecurity AND c.relforcerowsecurity),
    'reserved_schemas', (
        SELECT pg_catalog.jsonb_agg(n.nspname)
        FROM pg_catalog.pg_namespace AS n
        WHERE n.nspname = 'app'
            -- Ours in a source that was live in the target and came back.
            OR n.nspname = 'tenantferry'
            AND pg_catalog.to_regclass('tenantferry.reverse_positions') IS NULL),
    'large_objects', (SELECT count(*) FROM pg_catalog.pg_largeobject_metadata),
    'prepared', (
        SELECT pg_catalog.jsonb_agg(x.gid) FROM pg_catalog.pg_prepared_xacts AS x
        WHERE x.database = current_database()),
    'subscriptions', (
        SELECT pg_catalog.jsonb_agg(s.subname) FROM pg_catalog.pg_subscription AS s
        WHERE s.subdbid = (
            SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())),
    'event_triggers', (
        SELECT pg_catalog.jsonb_agg(e.evtname) FROM pg_catalog.pg_event_trigger AS e
        WHERE NOT EXISTS (
            SELECT FROM pg_catalog.pg_depend AS d
            WHERE d.classid = 'pg_catalog.pg_event_trigger'::pg_catalog.regclass
                AND d.objid = e.oid AND d.deptype = 'e')),
    'other_slots', (
        SELECT pg_catalog.jsonb_agg(s.slot_name) FROM pg_catalog.pg_replication_slots AS s
        WHERE s.database = current_database() AND s.slot_name <> %(slot)s AND NOT s.temporary),
    'app_roles', (
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
            wanted.name, r.rolname IS NOT NULL, coalesce(r.rolsuper, false),
            coalesce(r.rolbypassrls, false), wanted.name = current_user::text))
        FROM unnest(%(roles)s::text[]) AS wanted (name)
        LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = wanted.name)
)
