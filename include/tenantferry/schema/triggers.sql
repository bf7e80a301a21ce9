-- User triggers of ordinary and partitioned tables.
-- schemas: oids of the schemas to read.
SELECT t.tgrelid, t.tgname, pg_catalog.pg_get_triggerdef(t.oid), t.tgenabled,
    n.nspname, p.proname, p.prosecdef
FROM pg_catalog.pg_trigger AS t
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE NOT t.tgisinternal
    AND c.relkind IN ('r', 'p')
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
ORDER BY t.tgrelid, t.tgname
