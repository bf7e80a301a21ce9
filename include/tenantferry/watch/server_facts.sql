-- What a server says of its log: who it is and since when it runs, the name of this database, how
-- much log its slots may keep at most in bytes (null: any amount), how many bytes of log it has on
-- disk. No parameters.
SELECT
    control.system_identifier::text,
    extract(epoch FROM pg_postmaster_start_time())::text,
    current_database()::text,
    (
        SELECT settings.setting::bigint * 1024 * 1024
        FROM pg_catalog.pg_settings AS settings
        WHERE settings.name = 'max_slot_wal_keep_size' AND settings.setting::bigint >= 0
    ),
    (SELECT sum(files.size)::bigint FROM pg_ls_waldir() AS files)
FROM pg_control_system() AS control
