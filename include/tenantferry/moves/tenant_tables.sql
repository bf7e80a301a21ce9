-- Schema and name of every table of the target that may hold rows of tenants: those that the
-- retrofit made, and of a partitioned one the partitions that rows lie in. No parameters.
SELECT DISTINCT n.nspname::text, leaf.relname::text
FROM pg_catalog.pg_policy AS p
JOIN pg_catalog.pg_attribute AS a
    ON a.attrelid = p.polrelid AND a.attname = 'tenant_id' AND NOT a.attisdropped
    AND a.atttypid = 'pg_catalog.uuid'::pg_catalog.regtype
JOIN LATERAL (
    SELECT p.polrelid AS oid
    UNION
    SELECT t.relid FROM pg_catalog.pg_partition_tree(p.polrelid) AS t
) AS members ON true
JOIN pg_catalog.pg_class AS leaf ON leaf.oid = members.oid AND leaf.relkind = 'r'
JOIN pg_catalog.pg_namespace AS n ON n.oid = leaf.relnamespace
WHERE p.polname = 'tenant_isolation'
ORDER BY 1, 2
