"""Who needs a replication slot of ours, and whether it has what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tenantferry.control.graces import REVERSE_SLOT
from tenantferry.control.phases import Phase
from tenantferry.schema.findings import Finding, error, warning
from tenantferry.watch.log_servers import LogServer, SeenSlot
from tenantferry.watch.standings import IN_FLIGHT, STREAMED, Standing

CHECK = "slots and wal"
SLOT_PREFIX = "tenantferry_"
# Of slots that end with their session: those of later rounds of a backfill, and of validations.
TEMPORARY_PREFIXES = ("tfround_", "tfvalidate_")
# A comparison beside the steps needs its slot for seconds only; all others belong to a step.
TEMPORARY_SECONDS = 300.0

# Of the witness of a move, on the target. It is read for a moment each minute.
WITNESS_PREFIX = "tfwitness_"

_NEEDS_SLOT = IN_FLIGHT | {Phase.ROLLING_BACK}
_NEEDS_WITNESS = IN_FLIGHT | {Phase.PREPARED, Phase.ABORTING}


@dataclass(frozen=True, slots=True)
class Needs:
    """
    What slots are needed for.

    :ivar target: system identifier of the target's server, a slash, the database's name.
    :ivar target_home: address by which the target is reached.
    :ivar standings: by tenant, as they were both before and after the slots were looked at.
    :ivar homes: by tenant: the address by which its source is reached.
    :ivar moving: tenants of which this cannot be said, or of which a step runs.
    :ivar inactive_limit: seconds that a slot may be without a reader.
    """

    target: str
    target_home: str
    standings: Mapping[str, Standing]
    homes: Mapping[str, str]
    moving: frozenset[str]
    inactive_limit: float

    @property
    def has_grace(self) -> bool:
        """Whether any tenant can go back."""
        return any(standing.in_grace for standing in self.standings.values())

    def is_moving(self, slot: SeenSlot) -> bool:
        """Tell whether a step of a slot's tenant runs: log piles up while it does."""
        return slot.name.partition("_")[2] in self.moving

    def is_home(self, server: LogServer, standing: Standing) -> bool:
        """Tell whether a server is that of a tenant's source."""
        # Who shares its identifier, e.g. a server that was replaced by its replica, is not.
        if (home := self.homes.get(standing.tenant)) is not None:
            return home in server.addresses
        return standing.source_identity.partition("/")[0] == server.system_identifier


def judge_use(
    server: LogServer, slot: SeenSlot, needs: Needs, *, subject: str, inactive_seconds: float
) -> Iterator[Finding]:
    """
    Tell a slot that nobody needs, or that nobody reads.

    :param subject: what people call the slot.
    :param inactive_seconds: for how long nobody has read it, as far as anybody knows.
    """
    drop = (
        f"SELECT pg_drop_replication_slot('{slot.name}') in database \"{slot.database}\" of that"
        " server"
    )
    prefix, _, tenant = slot.name.partition("_")
    identity = f"{server.system_identifier}/{slot.database}"
    if f"{prefix}_" in TEMPORARY_PREFIXES:
        yield from _judge_temporary(slot, subject, drop, is_moving=tenant in needs.moving)
    elif (
        identity == needs.target
        and needs.target_home in server.addresses
        and slot.name == REVERSE_SLOT
    ):
        if not (needs.has_grace or slot.is_active or needs.moving):
            yield error(
                CHECK,
                subject,
                "No tenant can go back any more, and nobody reads it. It keeps log until the disk"
                " is full.",
                f'{drop}; the reader in Dag "reverse_stream" makes a new one when it is needed.',
            )
    elif tenant in needs.moving:
        return
    elif f"{prefix}_" == WITNESS_PREFIX:
        is_home = identity == needs.target and needs.target_home in server.addresses
        yield from _judge_witness(needs, tenant, subject, drop, is_home=is_home)
    elif (
        (standing := needs.standings.get(tenant)) is None
        or standing.source_identity != identity
        or not needs.is_home(server, standing)
    ):
        yield _tell_stranger(slot, subject, drop)
    elif standing.phase not in _NEEDS_SLOT:
        yield error(
            CHECK,
            subject,
            f'Tenant "{tenant}" is in phase "{standing.phase}" and does not need it. It keeps log'
            " until the disk is full.",
            f'Clear what failed: the last step of Dag "migrate_{tenant}", or the rollback in Dag'
            f' "rollback_tenant"; it drops the slot. Else {drop}.',
        )
    elif inactive_seconds > needs.inactive_limit:
        yield error(
            CHECK,
            subject,
            f'Nobody has read it for {inactive_seconds:.0f} s; tenant "{tenant}" is in phase'
            f' "{standing.phase}". It keeps log until the disk is full.',
            f'Go on with Dag "migrate_{tenant}", or trigger "abort_tenant".',
        )


def find_missing(servers: Sequence[LogServer], needs: Needs) -> Iterator[Finding]:
    """Tell a tenant that needs a slot which is gone, or no longer holds what it should."""
    for server in servers:
        slots = {f"{slot.database}/{slot.name}": slot for slot in server.slots}
        for standing in needs.standings.values():
            _, _, database = standing.source_identity.partition("/")
            if standing.phase in STREAMED and needs.is_home(server, standing):
                name = f"{SLOT_PREFIX}{standing.tenant}"
                yield from _judge_missing(
                    f'slot "{name}" of tenant "{standing.tenant}" on {server.where}',
                    slots.get(f"{database}/{name}"),
                    "The source does not hold what the target lacks any more: clear the task"
                    f' "backfill" of Dag "migrate_{standing.tenant}" and those after it.',
                )
        _, _, database = needs.target.partition("/")
        if needs.target_home in server.addresses and needs.has_grace:
            yield from _judge_missing(
                f'slot "{REVERSE_SLOT}" of the target',
                slots.get(f"{database}/{REVERSE_SLOT}"),
                'See Dag "reverse_stream". What the slot held is gone for the sources: the tenants'
                " in grace lose their way back.",
            )


def _judge_missing(subject: str, slot: SeenSlot | None, hint: str) -> Iterator[Finding]:
    if slot is None:
        yield error(CHECK, subject, "It does not exist.", hint)
    elif slot.is_lost:
        yield error(
            CHECK, subject, f'It was invalidated; the server says "{slot.lost_reason}".', hint
        )


def _judge_temporary(
    slot: SeenSlot, subject: str, drop: str, *, is_moving: bool
) -> Iterator[Finding]:
    if not slot.is_temporary:
        yield error(CHECK, subject, "It is not temporary, so no step of ours made it.", f"{drop}.")
    elif (slot.reader_seconds or 0.0) > TEMPORARY_SECONDS and not is_moving:
        yield error(
            CHECK,
            subject,
            f"Its session is {slot.reader_seconds:.0f} s old, and no step of that tenant runs. It"
            " keeps log until the disk is full.",
            "End that session on the server: the slot goes with it.",
        )


def _judge_witness(
    needs: Needs, tenant: str, subject: str, drop: str, *, is_home: bool
) -> Iterator[Finding]:
    standing = needs.standings.get(tenant)
    if is_home and standing is not None and standing.phase in _NEEDS_WITNESS:
        # Later on the slot of the source tells that nobody works for that tenant.
        if standing.phase is Phase.PREPARED and standing.seconds > needs.inactive_limit:
            yield error(
                CHECK,
                subject,
                f'Tenant "{tenant}" was prepared {standing.seconds:.0f} s ago, and nothing of it is'
                " copied. It keeps log until the disk is full.",
                f'Go on with Dag "migrate_{tenant}", or trigger "abort_tenant".',
            )
        return
    phase = "not registered there" if standing is None else f'in phase "{standing.phase}"'
    yield error(
        CHECK,
        subject,
        f'It is the witness of a move of tenant "{tenant}", which is {phase} and does not need it.'
        " It keeps log until the disk is full.",
        f"{drop}.",
    )


def _tell_stranger(slot: SeenSlot, subject: str, drop: str) -> Finding:
    detail = "No tenant of this fleet owns it."
    if slot.is_active:
        return warning(CHECK, subject, f'{detail} It is read by "{slot.reader}".')
    return error(
        CHECK,
        subject,
        f"{detail} Nobody reads it. It keeps log until the disk is full.",
        f"If no other fleet moves a tenant of that server: {drop}.",
    )
