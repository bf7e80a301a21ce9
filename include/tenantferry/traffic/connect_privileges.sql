-- Who may connect to this database, as (grantee, null for PUBLIC; is grantable; granted by the
-- owner). A database without an access list has the server's defaults. No parameters.
SELECT
    CASE WHEN acl.grantee <> 0 THEN pg_catalog.pg_get_userbyid(acl.grantee)::text END,
    acl.is_grantable,
    acl.grantor = d.datdba
FROM pg_catalog.pg_database AS d,
    LATERAL pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba)))
        WITH ORDINALITY AS acl (grantor, grantee, privilege_type, is_grantable, number)
WHERE d.datname = current_database() AND acl.privilege_type = 'CONNECT'
ORDER BY acl.number
