"""The waves: which tenants one run of ``nightly_wave`` moves, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg2.extensions import connection
from psycopg2.extras import execute_values


class Standing(StrEnum):
    """How the run of a tenant stands."""

    RUNNING = "running"
    ASKING = "asking"  # waits for a person's approval
    LIVE = "live"
    FAILED = "failed"  # its stream may go on
    DECLINED = "declined"  # a person refused the cutover
    SKIPPED = "skipped"  # could not be started; there is no run


@dataclass(frozen=True, slots=True)
class Pick:
    """
    A tenant that a wave is going to move.

    :ivar is_alone: never in flight beside another.
    """

    tenant: str
    is_alone: bool
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Member:
    """
    A tenant of a wave.

    :ivar run_id: of its Dag; the same however often the wave starts it.
    :ivar started_at: ``None``: not started yet.
    :ivar standing: ``None`` with a start: whether there is a run nobody knows.
    :ivar since: of the standing.
    :ivar detail: what is to be said about the standing, or empty. Without a standing, what kept it
        from being started when it was last decided.
    """

    tenant: str
    position: int
    run_id: str
    is_alone: bool = False
    started_at: datetime | None = None
    standing: Standing | None = None
    since: datetime | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Wave:
    """
    One run of ``nightly_wave``.

    :ivar number: counts all waves of the target.
    :ivar stage: 1 is the first of the declared stages.
    :ivar stage_size: tenants that have to be live for the stage to end.
    :ivar starts_from: before, it starts no tenant; ``None``: it may start at once.
    :ivar starts_until: from here on it starts no tenant.
    :ivar stop_reason: it starts no tenant any more, and why.
    """

    number: int
    stage: int
    stage_size: int
    starts_from: datetime | None
    starts_until: datetime
    ended_at: datetime | None
    stop_reason: str | None
    members: tuple[Member, ...]


def has_waves(target: connection) -> bool:
    """Tell whether the control schema is there, and new enough to know of waves."""
    with target.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.wave_members') IS NOT NULL")
        return cursor.fetchone() == (True,)


def read_clock(target: connection) -> datetime:
    """Return the time of the server that keeps the waves' times."""
    with target.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        row = cursor.fetchone()
    moment: datetime = row[0] if row else datetime.min
    return moment


def record_plan(
    target: connection,
    run_id: str,
    picks: Sequence[Pick],
    *,
    stage: int,
    stage_size: int,
    stage_wave: int | None,
    starts_from: datetime | None,
    starts_until: datetime,
) -> int | None:
    """
    Store what a wave is going to do, in place of what it was going to do before.

    :param target: open transaction; the caller commits.
    :param stage_wave: the wave that the stage began with; ``None``: this one.
    :return: the wave's number; ``None`` where nobody is picked: then there is no wave.
    """
    with target.cursor() as cursor:
        cursor.execute("DELETE FROM tenantferry.waves WHERE run_id = %s", (run_id,))
        if not picks:
            return None
        cursor.execute(
            "INSERT INTO tenantferry.waves"
            " (run_id, stage, stage_size, stage_wave, starts_from, starts_until)"
            " VALUES (%s, %s, %s, %s, %s, %s) RETURNING wave",
            (run_id, stage, stage_size, stage_wave, starts_from, starts_until),
        )
        row = cursor.fetchone()
        wave: int = row[0] if row else 0
        execute_values(
            cursor,
            "INSERT INTO tenantferry.wave_members"
            " (wave, tenant, position, run_id, alone, size_bytes) VALUES %s",
            [
                (wave, p.tenant, number, name_run(wave, p.tenant), p.is_alone, p.size_bytes)
                for number, p in enumerate(picks, start=1)
            ],
        )
    return wave


def name_run(wave: int, tenant: str) -> str:
    """Return the id of the run of a tenant's Dag, which tells its wave."""
    return f"wave_{wave}__{tenant}"


def read_wave(target: connection, run_id: str) -> Wave | None:
    """Return the wave of a run of ``nightly_wave``, its members in their order."""
    with target.cursor() as cursor:
        cursor.execute(
            "SELECT wave, stage, stage_size, starts_from, starts_until, ended_at, stop_reason"
            " FROM tenantferry.waves WHERE run_id = %s",
            (run_id,),
        )
        row = cursor.fetchone()
        if row is None:
            return None
        cursor.execute(
            "SELECT tenant, position, run_id, alone, started_at, standing, since,"
            " coalesce(detail, '') FROM tenantferry.wave_members WHERE wave = %s"
            " ORDER BY position",
            (row[0],),
        )
        members = tuple(_member(found) for found in cursor.fetchall())
    number, stage, stage_size, starts_from, starts_until, ended_at, stop_reason = row
    return Wave(
        number, stage, stage_size, starts_from, starts_until, ended_at, stop_reason, members
    )


def reopen_wave(target: connection, wave: int) -> None:
    """
    Let a wave that ended go on. The caller commits.

    It is not stopped any more, and members that could not be started may be tried again. One that
    has not ended stays as it is.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.waves SET ended_at = NULL, stop_reason = NULL"
            " WHERE wave = %s AND ended_at IS NOT NULL",
            (wave,),
        )
        if not cursor.rowcount:
            return
        cursor.execute(
            "UPDATE tenantferry.wave_members SET standing = NULL, since = NULL, detail = NULL"
            " WHERE wave = %s AND standing = %s",
            (wave, Standing.SKIPPED),
        )


def stop_wave(target: connection, wave: int, *, reason: str) -> None:
    """Let a wave start nothing more; the first reason stays. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.waves SET stop_reason = %s WHERE wave = %s AND stop_reason IS NULL",
            (reason, wave),
        )
        # From now on this is what keeps the others from starting.
        cursor.execute(
            "UPDATE tenantferry.wave_members SET detail = NULL"
            " WHERE wave = %s AND started_at IS NULL AND standing IS NULL",
            (wave,),
        )


def end_wave(target: connection, wave: int) -> None:
    """Record that nothing is left to do for a wave. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.waves SET ended_at = clock_timestamp() WHERE wave = %s", (wave,)
        )


def record_start(target: connection, wave: int, tenant: str) -> bool:
    """
    Record that a member is being started. The caller commits, starts it, and records its standing.

    :return: ``False`` if the wave has no such member any more.
    """
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.wave_members SET started_at = clock_timestamp(), standing = NULL,"
            " since = clock_timestamp(), detail = NULL WHERE wave = %s AND tenant = %s",
            (wave, tenant),
        )
        return bool(cursor.rowcount)


def record_undone_start(target: connection, wave: int, tenant: str) -> None:
    """Record that a member was not started after all. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.wave_members SET started_at = NULL, since = NULL"
            " WHERE wave = %s AND tenant = %s AND standing IS NULL",
            (wave, tenant),
        )


def record_blocker(target: connection, wave: int, tenant: str, *, detail: str) -> None:
    """Record what keeps a member from being started. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.wave_members SET detail = %s"
            " WHERE wave = %s AND tenant = %s AND started_at IS NULL AND standing IS NULL",
            (detail, wave, tenant),
        )


def record_skip(target: connection, wave: int, tenant: str, *, detail: str) -> None:
    """Record that a member could not be started. The caller commits."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.wave_members SET started_at = NULL, standing = %s,"
            " since = clock_timestamp(), detail = %s WHERE wave = %s AND tenant = %s",
            (Standing.SKIPPED, detail, wave, tenant),
        )


def record_standing(
    target: connection, wave: int, tenant: str, standing: Standing, *, detail: str
) -> None:
    """Record how a started member stands; the time of a standing that lasts is kept."""
    with target.cursor() as cursor:
        cursor.execute(
            "UPDATE tenantferry.wave_members SET detail = %(detail)s, standing = %(standing)s,"
            " since = CASE WHEN standing = %(standing)s THEN since ELSE clock_timestamp() END"
            " WHERE wave = %(wave)s AND tenant = %(tenant)s",
            {"wave": wave, "tenant": tenant, "standing": standing, "detail": detail},
        )


def _member(row: tuple[Any, ...]) -> Member:
    tenant, position, run_id, is_alone, started_at, standing, since, detail = row
    return Member(
        tenant=tenant,
        position=position,
        run_id=run_id,
        is_alone=is_alone,
        started_at=started_at,
        standing=None if standing is None else Standing(standing),
        since=since,
        detail=detail,
    )
