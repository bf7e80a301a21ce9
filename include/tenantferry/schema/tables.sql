-- Ordinary, permanent tables that neither inherit nor are inherited from.
-- schemas: oids of the schemas to read.
SELECT
    c.oid,
    n.nspname,
    c.relname,
    c.relreplident,
    c.reltuples::bigint,
    pg_catalog.pg_table_size(c.oid),
    pg_catalog.obj_description(c.oid, 'pg_class')
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
    AND c.relpersistence = 'p'
    AND NOT c.relispartition
    AND c.relnamespace = ANY (%(schemas)s::oid[])
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS i WHERE c.oid IN (i.inhrelid, i.inhparent))
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname, c.relname
