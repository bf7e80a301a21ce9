-- Roles other than the tenant's own, ours and superusers that could write its rows: members of its
-- role, and roles that name their tenant themselves. Only those that may log in.
-- role: the tenant's role.
SELECT r.rolname::text
FROM pg_catalog.pg_roles AS r
WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname NOT IN (%(role)s, current_user)
    AND (
        pg_catalog.pg_has_role(r.oid, %(role)s, 'MEMBER')
        OR EXISTS (SELECT FROM app.shared_roles AS s WHERE s.role_name = r.rolname)
    )
ORDER BY r.rolname
