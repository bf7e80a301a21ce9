"""Leave a write pause no more to compare than it has time for, or pause nobody."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from psycopg2.extensions import connection

from tenantferry.backfill.chunk import Chunk
from tenantferry.control.touched import Touched, read_touched
from tenantferry.control.validations import ValidationResult
from tenantferry.errors import TransientError
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.move import Move
from tenantferry.moves.validate import revalidate_in_step
from tenantferry.schema.model import Table

# Each has less to compare than the one before, and so leaves less; where it does not, more of them
# do not help.
MAX_COMPARISONS = 5
# So many rows of a table are looked up by their keys in about a second, at the least.
KEYS_PER_SECOND = 20_000


def compare_last_rows(
    source: connection,
    target: connection,
    move: Move,
    tables: Sequence[Table],
    chunks: Sequence[tuple[Chunk, Table]],
) -> ValidationResult:
    """
    Compare what was written since a validated tenant was compared, until little is left.

    What is left belongs to the write pause, which compares it again whatever it is.

    :param source: session in autocommit; only read.
    :param target: the step's session, outside a transaction; this commits.
    :raises MismatchError: if anything differs.
    :raises TransientError: if more is left, again and again, than `Tenant.recheck_seconds` allow
        for: clients would wait in vain.
    """
    compared: ValidationResult | None = None
    touched: Sequence[Touched] | None = None
    before = left = seconds = math.inf
    table_seconds: dict[str, float] = {}
    for number in range(1, MAX_COMPARISONS + 1):
        found = revalidate_in_step(source, target, move, tables, chunks)
        if compared is not None and found.validation_id == compared.validation_id:
            return found
        compared = found
        table_seconds.update(compared.table_seconds)
        # What the stream has not applied yet has to be compared, too.
        measure_lag(move)
        with target:
            touched = read_touched(target, move.tenant.key, since=compared.position)
        if touched is None:
            seconds = math.inf
            continue
        before, left = left, sum(one.size for one in touched)
        seconds = _estimate_seconds(touched, table_seconds)
        if 2 * left < before and number < MAX_COMPARISONS:
            continue
        if seconds <= move.tenant.recheck_seconds:
            return compared
        # The first one compared what many hours wrote.
        if number > 1 and math.isfinite(seconds):
            break
    raise _tell_too_much(move, touched or (), seconds)


def _estimate_seconds(touched: Sequence[Touched], table_seconds: Mapping[str, float]) -> float:
    """Tell how long clients would wait; for ever, where a table was never compared as a whole."""
    return sum(
        table_seconds.get(f"{one.schema}.{one.table}", math.inf)
        if one.is_whole
        else one.size / KEYS_PER_SECOND
        for one in touched
    )


def _tell_too_much(move: Move, touched: Sequence[Touched], seconds: float) -> TransientError:
    tenant = move.tenant
    left = ", ".join(map(str, touched)) or "nobody knows what"
    takes = "nobody knows how long" if math.isinf(seconds) else f"about {seconds:.1f} s"
    return TransientError(
        f'could not compare the rows of tenant "{tenant.key}" as fast as they are written',
        detail=f"Written while others were compared: {left}. Clients would wait for {takes};"
        f" recheck_seconds is {tenant.recheck_seconds:g}. Nobody was paused.",
        hint="Cut over at a quieter time, or give the tenant more recheck_seconds; its clients wait"
        " for so long. Where whole tables are left, more backfill_workers help, too.",
    )
