"""Check: every replication slot of ours is needed and read, and none fills a disk."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import connection

from tenantferry.control.phases import Phase
from tenantferry.errors import TenantferryError
from tenantferry.moves.identity import read_source_identity
from tenantferry.schema.findings import warning
from tenantferry.watch.asking import Answered, Place, find_places
from tenantferry.watch.log_servers import LogServer, SeenSlot, ask_log_servers
from tenantferry.watch.memory import (
    Observation,
    keep_seconds,
    measure_growth,
    read_former_sizes,
    read_unwell_seconds,
    remember,
)
from tenantferry.watch.report import Report
from tenantferry.watch.room import judge_room, measure_room
from tenantferry.watch.slot_use import CHECK, SLOT_PREFIX, Needs, find_missing, judge_use
from tenantferry.watch.standings import Standing, read_standings
from tenantferry.watch.watched import Watched, open_look


def check_slots(watched: Watched) -> Report:
    """
    Look at the slots of ours on every server of the fleet, and at the log they keep.

    :raises TenantferryError: if the target cannot be asked.
    """
    report = Report()
    with open_look(watched.target, what="slots") as target:
        before = read_standings(target)
        if not before:
            return report
        # Of two transactions: what a step changes meanwhile must show in the second look.
        target.commit()
        places = _find_servers(watched, before)
        servers = _read_servers(report, ask_log_servers(places))
        needs = _find_needs(watched, target, places, before=before, after=read_standings(target))
        looking = _Looking(watched, report, needs, target)
        disks = _read_disk_sizes(watched, places)
        for server in servers:
            sizes = [disks[address] for address in server.addresses if address in disks]
            for slot in server.slots:
                looking.at_slot(server, slot, disk_bytes=min(sizes, default=None))
        remember(target, looking.observed, keep_seconds=keep_seconds(watched.settings))
    report.findings += find_missing(servers, needs)
    return report


def _find_servers(watched: Watched, standings: dict[str, Standing]) -> list[Place]:
    """A retired source may be gone, and its server with it."""
    retired = {key for key, one in standings.items() if one.phase is Phase.RETIRED}
    sources = [tenant for key, tenant in watched.fleet.tenants.items() if key not in retired]
    target = Place(watched.target, watched.fleet.target.conn_id)
    return [target, *find_places(watched, sources)[0]]


def _read_servers(report: Report, answers: Sequence[Answered[LogServer]]) -> list[LogServer]:
    servers: list[LogServer] = []
    for answered in answers:
        if not isinstance(answered.answer, TenantferryError):
            servers.append(answered.answer)
            continue
        where = answered.place.server
        report.see(f"all slots on {where}", kept_bytes=None)
        report.findings.append(
            warning(CHECK, where, f"What its slots keep is unknown: {answered.answer.message}.")
        )
    return servers


def _find_needs(
    watched: Watched,
    target: connection,
    places: Sequence[Place],
    *,
    before: dict[str, Standing],
    after: dict[str, Standing],
) -> Needs:
    """A step that began or ended meanwhile changes both the slots and what they are needed for."""
    settled = {
        key: standing
        for key, standing in after.items()
        if key in before
        and before[key].changed_at == standing.changed_at
        and not (before[key].is_busy or standing.is_busy)
    }
    return Needs(
        target=read_source_identity(target),
        target_home=Place(watched.target, watched.fleet.target.conn_id).server,
        standings=settled,
        homes={place.tenant.key: place.server for place in places if place.tenant is not None},
        moving=frozenset((before.keys() | after.keys()) - settled.keys()),
        inactive_limit=watched.settings.slot_inactive_seconds,
    )


def _read_disk_sizes(watched: Watched, places: Sequence[Place]) -> dict[str, int]:
    """Return how large the log of each server may get, by its address."""
    declared = watched.settings.wal_disk_bytes
    return {place.server: declared[place.conn_id] for place in places if place.conn_id in declared}


class _Looking:
    """Looks at one slot after the other, and keeps in mind what it saw."""

    def __init__(self, watched: Watched, report: Report, needs: Needs, target: connection) -> None:
        self._settings = watched.settings
        self._report = report
        self._needs = needs
        self._sizes = read_former_sizes(target)
        self._unwell = read_unwell_seconds(target)
        self.observed: list[Observation] = []

    def at_slot(self, server: LogServer, slot: SeenSlot, *, disk_bytes: int | None) -> None:
        """Look at one slot."""
        now = Observation(server.where, slot.name, slot.is_active, slot.kept_bytes)
        self.observed.append(now)
        growth = measure_growth(now, self._sizes.get(now.key, []))
        room = measure_room(server, slot, disk_bytes=disk_bytes, growth=growth)
        subject = f'slot "{slot.name}" of database "{slot.database}" on {server.where}'
        inactive = self._measure_inactive(slot, now)
        self._report.see(
            subject,
            reader=slot.reader or "nobody",
            inactive_seconds=inactive,
            kept_bytes=slot.kept_bytes,
            growth_per_second=growth,
            room_bytes=room.bytes,
            hours_until_no_room="never" if room.hours == float("inf") else room.hours,
        )
        self._report.findings += judge_use(
            server, slot, self._needs, subject=subject, inactive_seconds=inactive
        )
        self._report.findings += judge_room(
            subject, slot, room, self._settings, is_moving=self._needs.is_moving(slot)
        )

    def _measure_inactive(self, slot: SeenSlot, now: Observation) -> float:
        """Before version 17 only former looks tell; they may be of another slot of that name."""
        if slot.is_active:
            return 0.0
        if slot.inactive_seconds is not None:
            return slot.inactive_seconds
        standing = self._needs.standings.get(slot.name.removeprefix(SLOT_PREFIX))
        return min(
            self._unwell.get(now.key, 0.0), float("inf") if standing is None else standing.seconds
        )
