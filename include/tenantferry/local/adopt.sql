-- Give everything in this database to its owner, and the application its privileges.
-- Run by psql as a superuser.
--
-- owner: the role that shall own every object that no extension made.
-- app: the role that the application logs in as; it may read and write, and owns nothing.

SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, :'owner')
FROM pg_catalog.pg_namespace AS n
WHERE (n.oid >= 16384 OR nspname = 'public') AND nspname !~ '^pg_'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE objid = n.oid AND deptype = 'e')
\gexec

-- A sequence of a column follows its table.
SELECT format(
    'ALTER %s %s OWNER TO %I',
    CASE relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
        WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END,
    c.oid::regclass, :'owner'
)
FROM pg_catalog.pg_class AS c
WHERE c.oid >= 16384 AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
    AND relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend
        WHERE classid = 'pg_class'::regclass AND objid = c.oid
            AND (deptype = 'e' OR deptype IN ('a', 'i') AND relkind = 'S')
    )
\gexec

SELECT format(
    'ALTER %s %s OWNER TO %I', CASE typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END,
    t.oid::regtype, :'owner'
)
FROM pg_catalog.pg_type AS t
WHERE t.oid >= 16384 AND typtype IN ('e', 'd', 'r')
    AND typnamespace::regnamespace::text !~ '^(pg_|information_schema$)'
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend WHERE objid = t.oid AND deptype = 'e')
\gexec

SELECT format('ALTER ROUTINE %s OWNER TO %I', p.oid::regprocedure, :'owner')
FROM pg_catalog.pg_proc AS p
WHERE p.oid >= 16384 AND pronamespace::regnamespace::text !~ '^(pg_|information_schema$)'
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend WHERE objid = p.oid AND deptype IN ('e', 'i')
    )
\gexec

SELECT format('ALTER STATISTICS %I.%I OWNER TO %I', nspname, stxname, :'owner')
FROM pg_catalog.pg_statistic_ext JOIN pg_catalog.pg_namespace AS n ON n.oid = stxnamespace
\gexec

SELECT format(privilege, nspname, :'app')
FROM pg_catalog.pg_namespace,
    unnest(ARRAY[
        'GRANT USAGE ON SCHEMA %I TO %I',
        'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I',
        'GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA %I TO %I'
    ]) AS privilege
WHERE nspname !~ '^(pg_|information_schema$)'
\gexec
