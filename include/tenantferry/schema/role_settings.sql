-- Settings of application sessions in this database, the weakest first.
-- roles: names of the roles that the application logs in as.
SELECT setting.text
FROM pg_catalog.pg_db_role_setting AS s
LEFT JOIN pg_catalog.pg_database AS d ON d.oid = s.setdatabase
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = s.setrole
CROSS JOIN LATERAL unnest(s.setconfig) WITH ORDINALITY AS setting (text, number)
WHERE (s.setdatabase = 0 OR d.datname = current_database())
    AND (s.setrole = 0 OR r.rolname = ANY (%(roles)s::text[]))
ORDER BY
    s.setrole <> 0,
    s.setdatabase <> 0,
    array_position(%(roles)s::text[], r.rolname::text),
    setting.number
