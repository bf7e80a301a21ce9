"""
Locks that make a step wait at an exact place, so that a drill hits it there and not nearby.

Each is held by a superuser of the server, as by some forgotten session, until it is let go.
"""

from __future__ import annotations

from typing import Any, Self

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection

from drill_fleet import DrillFleet
from tenantferry.connections import ConnectionParams

_RESUMED_WAITS = """
CREATE SCHEMA drills;
CREATE FUNCTION drills.wait() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(NEW.tenant, 0));
    RETURN NEW;
END $$;
CREATE TRIGGER wait BEFORE UPDATE ON tenantferry.write_pauses FOR EACH ROW
    WHEN (OLD.resumed_at IS NULL AND NEW.resumed_at IS NOT NULL)
    EXECUTE FUNCTION drills.wait();
"""
# A chunk of the drill that needs them has as many.
_ROWS_HELD = 100
_STEP_LOCK = "SELECT pg_advisory_lock(hashtextextended('tenantferry step ' || %s, 0))"


class Hold:
    """
    What a session has locked, until it is let go.

    :param statement: run in a transaction that is rolled back in the end, unless it is kept.
    """

    def __init__(
        self, params: ConnectionParams, statement: str | sql.Composable, *values: Any
    ) -> None:
        self._session: connection = psycopg2.connect(
            host=params.host, port=params.port, user=params.user, password=params.password,
            dbname=params.database, application_name="forgotten session",
        )  # fmt: skip
        with self._session.cursor() as cursor:
            cursor.execute(statement, values or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def keep(self) -> None:
        """Commit what the statement did."""
        self._session.commit()

    def let_go(self) -> None:
        """Undo it; may be called again."""
        self._session.close()


def target_of(fleet: DrillFleet) -> ConnectionParams:
    """Return the target as its superuser sees it."""
    return fleet.local.target.superuser.with_database(fleet.local.target_params.database)


def hold_rows_to_copy(fleet: DrillFleet, key: str) -> Hold:
    """Make the copying of the items in the middle wait: their keys are taken, for now."""
    tenant = fleet.tenant(key)
    # Clients delete some of these before they are copied, and never as many.
    first = tenant.rows // 4
    return Hold(
        target_of(fleet),
        "SET LOCAL session_replication_role = replica;"
        " INSERT INTO public.invoice_items (tenant_id, id, invoice_id, description, unit_price)"
        " SELECT %s, id, 1, 'taken', 1 FROM generate_series(%s, %s) AS id",
        str(tenant.id),
        first,
        first + _ROWS_HELD - 1,
    )


def hold_rows_to_change(fleet: DrillFleet, key: str) -> Hold:
    """Make the stream wait as soon as an invoice or a customer was changed on the source."""
    tenant_id = str(fleet.tenant(key).id)
    return Hold(
        target_of(fleet),
        "SELECT FROM public.invoices WHERE tenant_id = %s FOR UPDATE;"
        " SELECT FROM public.customers WHERE tenant_id = %s FOR UPDATE",
        tenant_id,
        tenant_id,
    )


def hold_registration(fleet: DrillFleet, key: str) -> Hold:
    """Make every change of the tenant's phase wait, and no record that refers to the tenant."""
    return Hold(
        target_of(fleet),
        "SELECT FROM tenantferry.tenants WHERE tenant = %s FOR NO KEY UPDATE",
        key,
    )


def hold_publication(fleet: DrillFleet, key: str) -> Hold:
    """Make the source wait before it forgets about the move."""
    return Hold(
        fleet.local.source.superuser.with_database(key),
        # It is fenced already.
        sql.SQL("SET TRANSACTION READ WRITE; COMMENT ON PUBLICATION {} IS 'held'").format(
            sql.Identifier(f"tenantferry_{key}")
        ),
    )


def hold_step(fleet: DrillFleet, key: str) -> Hold:
    """Wait for the tenant's steps to be over, and keep the next one from beginning."""
    return Hold(target_of(fleet), _STEP_LOCK, key)


def hold_fence(fleet: DrillFleet, key: str) -> Hold:
    """Make a change of the privileges of the source wait."""
    return Hold(
        fleet.local.source.superuser,
        sql.SQL("ALTER DATABASE {} CONNECTION LIMIT -1").format(sql.Identifier(key)),
    )


def hold_stream_row(fleet: DrillFleet, key: str, *, direction: str = "forward") -> Hold:
    """Make every command to a stream wait."""
    return Hold(
        target_of(fleet),
        "SELECT FROM tenantferry.streams WHERE tenant = %s AND direction = %s FOR UPDATE",
        key,
        direction,
    )


def hold_comparison(fleet: DrillFleet, key: str) -> Hold:
    """Make the comparison within the pause wait, and clients; in the target others would, too."""
    return Hold(
        fleet.local.source.superuser.with_database(key),
        "LOCK TABLE public.customers, public.invoices",
    )


def hold_sequence(fleet: DrillFleet, key: str) -> Hold:
    """Make the setting of one of the tenant's sequences wait."""
    return Hold(
        target_of(fleet),
        sql.SQL("ALTER SEQUENCE {} RESTART").format(sql.Identifier(f"t_{key}", "invoices_id_seq")),
    )


def hold_role(fleet: DrillFleet, key: str) -> Hold:
    """Make the decision wait: the tenant's role cannot get its login."""
    return Hold(
        target_of(fleet),
        sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(sql.Identifier(f"tenant_{key}")),
    )


def hold_resumed(fleet: DrillFleet, key: str) -> Hold:
    """Make the record that the tenant's clients were resumed wait; see `make_resumed_wait`."""
    return Hold(target_of(fleet), "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", key)


def make_resumed_wait(fleet: DrillFleet) -> None:
    """Let `hold_resumed` work. No lock of its row, or of a table, stands between two steps."""
    with Hold(target_of(fleet), _RESUMED_WAITS) as made:
        made.keep()
