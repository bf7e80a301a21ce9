#!/bin/sh
# Make the roles, databases and files that docker-compose.yaml needs: what administrators have made
# before the first move in production. May run again at any time, also while tenants are moved.
#
# TARGET, SOURCE_1, SOURCE_2    host:port of the servers
# PGUSER, PGPASSWORD            their superuser
# FERRY_PASSWORD, POOLER_PASSWORD
# APP_PASSWORD                  the application of a tenant logs in with <APP_PASSWORD>-<key>
# ENGINE                        the folder include/tenantferry
# POOLER, LOGS                  folders to make usable for PgBouncer and Airflow
# OWNER                         uid:gid of both
# ROWS                          size of a tenant's sample
set -eu

# A source that was left behind is read-only.
export PGOPTIONS="-c default_transaction_read_only=off -c client_min_messages=warning"

# run <host:port> <database> <arguments of psql>
run() {
    address=$1 database=$2
    shift 2
    psql --no-psqlrc --quiet --no-align --tuples-only --set=ON_ERROR_STOP=1 \
        --host="${address%:*}" --port="${address##*:}" --dbname="$database" "$@"
}

# login <host:port> <role> <password>: a role that is there keeps its password.
login() {
    # Not an argument: those are for everybody on the machine to read.
    LOGIN_PASSWORD=$3 run "$1" postgres --set=role="$2" <<'SQL'
\getenv password LOGIN_PASSWORD
SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', :'role', :'password')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'role') \gexec
SQL
}

# make_database <host:port> <name> <owner>
make_database() {
    run "$1" postgres --set=name="$2" --set=owner="$3" <<'SQL'
SELECT format('CREATE ROLE %I', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'owner') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'owner')
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = :'name') \gexec
SQL
}

# ask <host:port> <database> <condition>
ask() { [ "$(run "$1" "$2" --command="SELECT $3")" = t ]; }

# tenant <host:port> <database> <key>: a tenant's own database, with a sample in it.
tenant() {
    login "$1" "$3_app" "$APP_PASSWORD-$3"
    make_database "$1" "$2" "$2_owner"
    # What follows locks every table for a moment: not while the tenant lives.
    made="shobj_description(oid, 'pg_database') IS NOT DISTINCT FROM 'made by fleet_setup.sh'"
    if ! ask "$1" "$2" "$made FROM pg_catalog.pg_database WHERE datname = current_database()"; then
        # The sample is loaded in one transaction: as a whole or not at all.
        if ask "$1" "$2" "to_regclass('public.invoices') IS NULL"; then
            run "$1" "$2" --set=owner="$2_owner" --set=rows="$ROWS" \
                --file="$ENGINE/local/sample.sql"
        fi
        run "$1" "$2" --set=owner="$2_owner" --set=app="$3_app" --file="$ENGINE/local/adopt.sql"
        run "$1" "$2" --set=owner="$2_owner" --file="$ENGINE/schema/source_privileges.sql"
        run "$1" "$2" --command="COMMENT ON DATABASE $2 IS 'made by fleet_setup.sh'"
    fi
    # Nobody else's login may use the alias, nor the one that a cutover makes to rehearse.
    echo "host $2,tenantferry_$3 $3_app 0.0.0.0/0 scram-sha-256" >>"$POOLER/hba.conf"
    echo "\"$3_app\" \"$APP_PASSWORD-$3\"" >>"$POOLER/users.txt"
    # An alias that is there may point at the target already.
    if ! grep -q "^$2 = " "$POOLER/aliases.ini"; then
        echo "$2 = host=${1%:*} port=${1##*:} dbname=$2 user=$3_app password=$APP_PASSWORD-$3" \
            >>"$POOLER/aliases.ini"
    fi
}

umask 077
[ -f "$POOLER/aliases.ini" ] || echo '[databases]' >"$POOLER/aliases.ini"
echo "\"pooler_admin\" \"$POOLER_PASSWORD\"" >"$POOLER/users.txt"
echo 'host pgbouncer pooler_admin 0.0.0.0/0 scram-sha-256' >"$POOLER/hba.conf"

login "$TARGET" tenantferry "$FERRY_PASSWORD"
make_database "$TARGET" shared "$PGUSER"
run "$TARGET" shared --file="$ENGINE/schema/target_privileges.sql"
for source in "$SOURCE_1" "$SOURCE_2"; do
    login "$source" tenantferry "$FERRY_PASSWORD"
    run "$source" postgres --command='ALTER ROLE tenantferry REPLICATION'
done
tenant "$SOURCE_1" acme acme
tenant "$SOURCE_1" globex globex
tenant "$SOURCE_2" initech_prod initech

# Airflow replaces the file of aliases, and PgBouncer reads it, as the same user.
chown "$OWNER" "$LOGS" "$POOLER" "$POOLER/aliases.ini" "$POOLER/users.txt" \
    "$POOLER/hba.conf"
chmod 700 "$POOLER"
