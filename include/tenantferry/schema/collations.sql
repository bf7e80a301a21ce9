-- Collations that columns of this database can have, qualified and quoted. No parameters.
SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname)
FROM pg_catalog.pg_collation AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.collnamespace
JOIN pg_catalog.pg_database AS d ON d.datname = current_database()
WHERE c.collencoding IN (-1, d.encoding)
