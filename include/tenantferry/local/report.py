"""The result of a demo: what the control schema recorded, and what the clients saw."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from psycopg2.extensions import connection
from psycopg2.extras import RealDictCursor
from rich.box import SIMPLE
from rich.console import JustifyMethod
from rich.table import Table

from tenantferry.control.phases import Phase
from tenantferry.local.auditor import Audit
from tenantferry.local.measurements import Summary
from tenantferry.local.story import Story


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """The last exact comparison of source and target."""

    tables: int
    chunks: int
    rows: int
    mismatches: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ClientReport:
    """
    What the application saw.

    :ivar acknowledged_writes: rows written, as its journal has them.
    :ivar lost_writes: rows that are not in the target as the journal has them.
    """

    requests: int
    failed: int
    acknowledged_writes: int
    lost_writes: int
    p99_latency_ms: float | None
    max_latency_ms: float | None


@dataclass(frozen=True, slots=True)
class TurnReport:
    """One time that the clients were moved: ``forward`` or ``reverse``."""

    direction: str
    write_pause_ms: float


@dataclass(frozen=True, slots=True)
class TenantReport:
    """
    The move of one tenant.

    :ivar rows: copied by the backfill; changes came on top.
    :ivar write_pause_ms: of the last turn; ``None`` where there was no cutover.
    """

    tenant: str
    phase: str | None
    tables: int
    rows: int
    bytes: int
    backfill_seconds: float
    rows_per_second: float | None
    changes_streamed: int
    validation: ValidationReport | None
    write_pause_ms: float | None
    client: ClientReport
    turns: tuple[TurnReport, ...] = ()

    def find_problems(self, story: Story = Story.MIGRATE) -> list[str]:
        """Return what a demo must not end with, each in a sentence."""
        problems = []
        made = [turn.direction for turn in self.turns]
        if story is not Story.MIGRATE and made != list(story.turns):
            problems.append(f"turns were {', '.join(made) or 'none'}")
        if self.phase != Phase.LIVE:
            problems.append(f"phase is {self.phase or 'none'}, not live")
        if self.validation is None:
            problems.append("was not validated")
        elif self.validation.mismatches:
            problems.append(f"{self.validation.mismatches} mismatches between source and target")
        if not self.client.requests:
            problems.append("the client sent no request")
        if self.client.failed:
            problems.append(f"{self.client.failed} failed requests")
        if self.client.lost_writes:
            problems.append(f"{self.client.lost_writes} lost writes")
        return problems


@dataclass(frozen=True, slots=True)
class Report:
    """
    The whole demo.

    :ivar total_seconds: from the first trigger to the end of the last run.
    :ivar versions: program to version.
    """

    tenants: tuple[TenantReport, ...]
    total_seconds: float
    versions: Mapping[str, str]
    story: Story = Story.MIGRATE

    @property
    def is_success(self) -> bool:
        """Tell whether every tenant is live and validated, and no client was let down."""
        return bool(self.tenants) and not any(t.find_problems(self.story) for t in self.tenants)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")


def read_moves(target: connection) -> dict[str, dict[str, Any]]:
    """Return tenant to the columns of ``report.sql``; empty before the first preparation."""
    with target.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute("SELECT to_regclass('tenantferry.tenants') IS NOT NULL AS is_there")
        if cursor.fetchall() != [{"is_there": True}]:
            return {}
        query = resources.files("tenantferry.local").joinpath("report.sql")
        cursor.execute(query.read_text("utf-8"))
        return {row["tenant"]: dict(row) for row in cursor.fetchall()}


def build_tenant_report(
    tenant: str, move: Mapping[str, Any] | None, summary: Summary, audit: Audit
) -> TenantReport:
    """
    Put together what is known of one tenant.

    :param move: its row of `read_moves`; ``None`` if it was never registered.
    """
    found = move or {}
    rows, seconds = found.get("rows", 0), found.get("backfill_seconds", 0.0)
    return TenantReport(
        tenant=tenant,
        phase=found.get("phase"),
        tables=found.get("tables", 0),
        rows=rows,
        bytes=found.get("bytes", 0),
        backfill_seconds=round(seconds, 3),
        rows_per_second=round(rows / seconds) if seconds else None,
        changes_streamed=found.get("changes_streamed", 0),
        validation=_build_validation(found),
        write_pause_ms=_round(found.get("write_pause_ms")),
        turns=tuple(TurnReport(**turn) for turn in found.get("turns", ())),
        client=ClientReport(
            requests=summary.requests,
            failed=summary.failed,
            acknowledged_writes=audit.acknowledged_writes,
            lost_writes=audit.lost_writes,
            p99_latency_ms=summary.p99_latency_ms,
            max_latency_ms=summary.max_latency_ms,
        ),
    )


def build_tables(reports: Sequence[TenantReport], story: Story = Story.MIGRATE) -> list[Table]:
    """Lay the report out for a terminal: the moves, and what the clients saw of them."""
    moves = _new_table(
        "Moves", "phase", "tables", "rows", "MB", "copy s", "rows/s", "changes", "mismatches",
        "write pause ms",
    )  # fmt: skip
    clients = _new_table(
        "Clients", "requests", "failed", "writes", "lost", "p99 ms", "max ms", "verdict"
    )
    for report in reports:
        problems = report.find_problems(story)
        style = "red" if problems else "green"
        moves.add_row(report.tenant, report.phase or "-", *_tell_move(report), style=style)
        verdict = "; ".join(problems) or "moved, nothing lost"
        clients.add_row(report.tenant, *_tell_client(report.client), verdict, style=style)
    return [moves, clients]


def _new_table(title: str, *columns: str) -> Table:
    table = Table("tenant", title=title, title_justify="left", box=SIMPLE)
    for column in columns:
        justify: JustifyMethod = "left" if column in ("phase", "verdict") else "right"
        table.add_column(column, justify=justify, overflow="fold")
    return table


def _tell_move(report: TenantReport) -> list[str]:
    mismatches = report.validation.mismatches if report.validation else None
    values = (
        report.tables, report.rows, report.bytes / 1e6, report.backfill_seconds,
        report.rows_per_second, report.changes_streamed, mismatches,
    )  # fmt: skip
    pauses = [turn.write_pause_ms for turn in report.turns]
    return [*(_number(value) for value in values), " / ".join(map(_number, pauses)) or "-"]


def _tell_client(client: ClientReport) -> list[str]:
    values = (
        client.requests, client.failed, client.acknowledged_writes, client.lost_writes,
        client.p99_latency_ms, client.max_latency_ms,
    )  # fmt: skip
    return [_number(value) for value in values]


def _build_validation(found: Mapping[str, Any]) -> ValidationReport | None:
    if found.get("mismatches") is None:
        return None
    return ValidationReport(
        tables=found["validated_tables"],
        chunks=found["validated_chunks"],
        rows=found["validated_rows"],
        mismatches=found["mismatches"],
        seconds=round(found["validation_seconds"], 3),
    )


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
