"""One PgBouncer instance of a router, and whether it can hold clients and move them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tenantferry.connections import ConnectionParams, open_client_connection
from tenantferry.errors import PermanentError, TenantferryError
from tenantferry.traffic import aliases
from tenantferry.traffic.pgbouncer import AliasState, Console

# A login that is refused is refused at once.
_LOGIN_TIMEOUT_SECONDS = 3
# Clients may wait that much longer than the pause may take: the guard's time to undo it.
WAIT_MARGIN_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Instance:
    """
    One PgBouncer process.

    :ivar name: for messages.
    :ivar admin: its admin console, database ``pgbouncer``.
    :ivar aliases_file: the file it includes with ``%include``, where we can write it.
    """

    name: str
    admin: ConnectionParams
    aliases_file: Path


def is_at(state: AliasState, entry: Mapping[str, str]) -> bool:
    """Tell whether an instance has taken over *entry*."""
    return (
        state.host == entry.get("host")
        and state.port == int(entry.get("port") or 5432)
        and state.database == entry.get("dbname")
        and state.force_user == entry.get("user")
    )


def check_instance(
    console: Console, instance: Instance, alias: str, max_write_pause_seconds: float
) -> None:
    """
    Check that an instance can take part in a write pause. Changes nothing.

    :raises PermanentError: if it cannot.
    """

    def refuse(message: str, hint: str) -> PermanentError:
        return PermanentError(f'PgBouncer instance "{instance.name}" {message}', hint=hint)

    auth_type = console.read_setting("auth_type")
    if auth_type != "hba" or _lets_in(instance, alias):
        raise refuse(
            "lets every login use every alias",
            "An alias with a user of its own takes whoever PgBouncer knows to its tenant's rows."
            f" auth_type is {auth_type}. Set auth_type = hba and auth_hba_file = <file>, with a"
            f" line in that file for each alias and its login: host {alias},<alias of its"
            " rehearsal, tenantferry_<key>> <login> <network> scram-sha-256. The administrator's"
            " line names the database pgbouncer alone.",
        )
    state = console.read_alias(alias)
    if state is None:
        raise refuse(
            f'does not know alias "{alias}"', "Add it to the alias file, RELOAD, and try again."
        )
    entry = aliases.read_entry(instance.aliases_file, alias)
    if not is_at(state, {"dbname": alias, **entry}):
        raise refuse(
            f'does not have alias "{alias}" from the file "{instance.aliases_file.name}"',
            "It must %include that very file, and hold the alias nowhere else. RELOAD it.",
        )
    if state.pool_mode not in ("transaction", "statement"):
        raise refuse(
            f'pools alias "{alias}" by {state.pool_mode}',
            "PAUSE never ends there. Set pool_mode = transaction.",
        )
    if state.force_user is None:
        raise refuse(
            f'logs in as each client of alias "{alias}"',
            "Connected clients would keep their own role when the alias is pointed at the target."
            " Add user=<role> password=<password> to the alias, RELOAD, let clients reconnect.",
        )
    strangers = console.read_users(alias) - {state.force_user}
    if strangers:
        raise refuse(
            f'still has clients of alias "{alias}" that are logged in as {", ".join(strangers)}',
            f"They connected before the alias had user={state.force_user}, and would keep that role"
            " when it is pointed at the target. Let them reconnect.",
        )
    if state.min_pool_size:
        raise refuse(
            f'opens {state.min_pool_size} connections of alias "{alias}" also while it is paused',
            "The target refuses them until the decision, and PgBouncer then keeps clients waiting"
            " for server_login_retry. Set min_pool_size=0 for the alias, and RELOAD.",
        )
    if state.disabled:
        raise refuse(f'has alias "{alias}" disabled', "ENABLE it.")
    wait_timeout = float(console.read_setting("query_wait_timeout") or 0)
    needed = max_write_pause_seconds + WAIT_MARGIN_SECONDS
    if 0 < wait_timeout < needed:
        raise refuse(
            f"ends clients that wait for {wait_timeout:g} s",
            f"Set query_wait_timeout to {needed:g} s or more: clients wait during a cutover.",
        )
    aliases.check_editable(instance.aliases_file)


def _lets_in(instance: Instance, alias: str) -> bool:
    """Tell whether the administrator, whose own line names no alias, gets in at one."""
    options = {"connect_timeout": str(_LOGIN_TIMEOUT_SECONDS), **instance.admin.options}
    stranger = replace(instance.admin, database=alias, options=options)
    try:
        open_client_connection(stranger, purpose=f"check {alias}").close()
    except TenantferryError:
        return False
    return True
