"""Check: every stream that has to run does, and keeps up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from psycopg2.extensions import connection

from tenantferry.control.direction import Direction
from tenantferry.control.streams import StreamCommand, StreamState
from tenantferry.fleet.operation import Watch
from tenantferry.schema.findings import Finding, error
from tenantferry.watch.memory import Observation, keep_seconds, read_unwell_seconds, remember
from tenantferry.watch.report import Report
from tenantferry.watch.standings import read_standings
from tenantferry.watch.watched import Watched, open_look

CHECK = "lag and streams"
# A stream ends a hold whose lease is over within a second.
LEASE_MARGIN_SECONDS = 15.0

_FOLDER = resources.files("tenantferry.watch")
_STREAMS = _FOLDER.joinpath("streams.sql").read_text("utf-8")
_REVERSE_SLOT = _FOLDER.joinpath("reverse_slot.sql").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class SeenStream:
    """
    A stream that has to run, as its row tells.

    :ivar lag_seconds: of the last marker, or of the one that is on its way; ``None`` is unknown.
    :ivar measured_seconds: ago the last marker came back; ``None``: none has, since it started.
    :ivar reported_seconds: ago it last reported; ``None``: never.
    :ivar lease_over_seconds: ago the lease of its hold ended; negative: it has not.
    :ivar needed_seconds: since when it has to run.
    :ivar throttled_by: what slows it down; ``None``: nothing does.
    """

    tenant: str
    direction: Direction
    state: StreamState
    command: StreamCommand
    error: str | None
    copy_again: bool
    lag_seconds: float | None
    lag_bytes: int | None
    measured_seconds: float | None
    reported_seconds: float | None
    lease_over_seconds: float | None
    needed_seconds: float
    throttled_by: str | None = None

    def __str__(self) -> str:
        return f'{self.direction} stream of tenant "{self.tenant}"'

    @property
    def silent_seconds(self) -> float:
        """For how long it has said nothing."""
        return _measure_silence(self.reported_seconds, self.needed_seconds)

    @property
    def task(self) -> str:
        """Where on-call looks."""
        if self.direction is Direction.REVERSE:
            return 'Dag "reverse_stream"'
        # A tenant that went back is streamed by the run that took it there.
        return f'task "stream_cdc" of "migrate_{self.tenant}", or of its run of "rollback_tenant"'


@dataclass(frozen=True, slots=True)
class SeenReader:
    """
    The one reader of all reverse streams.

    :ivar tenants: that can go back.
    :ivar needed_seconds: since when it has to run; ``None``: it does not.
    :ivar reported_seconds: ago it last reported; ``None``: never.
    """

    tenants: int
    needed_seconds: float | None
    reported_seconds: float | None
    error: str | None

    @property
    def silent_seconds(self) -> float:
        """For how long it has said nothing."""
        return _measure_silence(self.reported_seconds, self.needed_seconds or 0.0)


def check_streams(watched: Watched) -> Report:
    """
    Look at the streams of tenants on their way and of tenants that can go back.

    :raises TenantferryError: if the target cannot be asked.
    """
    report = Report()
    settings = watched.settings
    with open_look(watched.target, what="streams") as target:
        if not read_standings(target):
            return report
        unwell = read_unwell_seconds(target)
        streams, reader = _read_streams(target), _read_reader(target)
        remember(
            target,
            [Observation(s.direction, s.tenant, s.lag_seconds is not None) for s in streams],
            keep_seconds=keep_seconds(settings),
        )
    reading = list(judge_reader(reader, settings))
    for stream in streams:
        unknown_seconds = min(
            unwell.get((stream.direction, stream.tenant), 0.0), stream.needed_seconds
        )
        report.see(
            str(stream),
            state=stream.state,
            lag_seconds=stream.lag_seconds,
            lag_bytes=stream.lag_bytes,
            reported_seconds_ago=stream.reported_seconds,
        )
        # One reader serves them all: that it is gone is told once.
        if not reading or stream.direction is Direction.FORWARD or stream.error:
            report.findings += judge_stream(stream, settings, unknown_seconds)
    report.see("reader of the reverse streams", tenants=reader.tenants,
               reported_seconds_ago=reader.reported_seconds)  # fmt: skip
    report.findings += reading
    return report


def judge_stream(stream: SeenStream, settings: Watch, unknown_seconds: float) -> Iterator[Finding]:
    """
    Tell what is wrong with a stream: the one thing that explains the others.

    :param unknown_seconds: for how long former looks did not know its lag.
    """
    if stream.copy_again:
        yield _find(
            stream,
            f"Rows are missing or wrong in the target. {stream.error or ''}".strip(),
            'Clear the task "backfill" of its Dag and those after it: only a new copy helps.',
        )
    elif stream.state is StreamState.FAILED:
        yield _find(
            stream,
            f"It failed: {stream.error or 'it does not say why'}",
            f"Do what the error says, then clear {stream.task}.",
        )
    elif stream.silent_seconds > settings.stalled_seconds:
        yield _find(
            stream,
            f'Its state is "{stream.state}", and it has not reported for'
            f" {stream.silent_seconds:.0f} s.",
            f"See {stream.task}: start or clear it. If it is scheduled and does not run, its pool"
            " or the executor has no free slot.",
        )
    elif (stream.lease_over_seconds or 0.0) > LEASE_MARGIN_SECONDS:
        yield _find(
            stream,
            f'It was told to "{stream.command}", and stands still {stream.lease_over_seconds:.0f} s'
            " after the lease of that has ended.",
            f"Clear {stream.task}.",
        )
    else:
        yield from _judge_lag(stream, settings, unknown_seconds)


def judge_reader(reader: SeenReader, settings: Watch) -> Iterator[Finding]:
    """Tell what is wrong with the reader of the reverse streams."""
    if reader.needed_seconds is None or reader.silent_seconds <= settings.stalled_seconds:
        return
    error_text = f" Its error: {reader.error}" if reader.error else ""
    yield error(
        CHECK,
        "reader of the reverse streams",
        f"It has not reported for {reader.silent_seconds:.0f} s; {reader.tenants} tenant(s) rely on"
        f" it for their way back, and the target keeps its log meanwhile.{error_text}",
        'See Dag "reverse_stream": start it, or clear its task.',
    )


def _judge_lag(stream: SeenStream, settings: Watch, unknown_seconds: float) -> Iterator[Finding]:
    limit = settings.lag_seconds
    if stream.lag_seconds is None:
        if unknown_seconds > limit:
            yield _find(
                stream,
                f"Its lag is unknown for {unknown_seconds:.0f} s: since it started no marker has"
                " come back. It is further behind than that.",
                f"See the log of {stream.task}: whether it catches up, and what holds it.",
            )
        return
    unknown = stream.measured_seconds or 0.0
    if stream.lag_seconds > limit or unknown > limit:
        yield _find(
            stream,
            f"It is {max(stream.lag_seconds, unknown):.0f} s behind (lag_seconds is {limit:g});"
            f" log behind it: {'unknown' if stream.lag_bytes is None else stream.lag_bytes} bytes."
            + (f" It is slowed down: {stream.throttled_by}." if stream.throttled_by else ""),
            f"See the log of {stream.task}. A large transaction passes by itself; if it grows from"
            " look to look, find what the receiving server waits for in pg_stat_activity.",
        )


def _measure_silence(reported_seconds: float | None, needed_seconds: float) -> float:
    # It need not have reported before it had to run: a backfill may have taken hours.
    return needed_seconds if reported_seconds is None else min(reported_seconds, needed_seconds)


def _find(stream: SeenStream, detail: str, hint: str) -> Finding:
    return error(CHECK, str(stream), detail, hint)


def _read_streams(target: connection) -> list[SeenStream]:
    with target.cursor() as cursor:
        cursor.execute(_STREAMS)
        return [
            SeenStream(row[0], Direction(row[1]), StreamState(row[2]), StreamCommand(row[3]),
                       *row[4:])
            for row in cursor
        ]  # fmt: skip


def _read_reader(target: connection) -> SeenReader:
    with target.cursor() as cursor:
        cursor.execute(_REVERSE_SLOT)
        tenants, needed, reported, failure = cursor.fetchone() or (0, None, None, None)
    return SeenReader(tenants, needed, reported, failure)
