"""Tables that come to a source, or go, while its tenant is on its way."""

from __future__ import annotations

import pytest

from move_stage import Stage, rows
from tenantferry.errors import PermanentError
from tenantferry.moves.cutover import cutover
from tenantferry.moves.lag import measure_lag
from tenantferry.moves.validate import validate


def test_validate_tells_of_tables_that_came_or_went(stage: Stage) -> None:
    stage.ask("INSERT INTO public.written VALUES (1) RETURNING 1")
    measure_lag(stage.move)

    stage.ask("DROP TABLE public.written")
    with pytest.raises(PermanentError, match="does not have any more") as dropped:
        validate(stage.move)
    rows(stage.target, "DELETE FROM public.written")
    validated = validate(stage.move)
    stage.ask("CREATE TABLE public.written (id bigint PRIMARY KEY)")
    with pytest.raises(PermanentError, match="lacks tables of the source") as came:
        cutover(stage.move)

    assert "public.written" in dropped.value.detail
    assert "made again: public.written" in came.value.detail
    assert (validated.tables, validated.rows, validated.mismatches) == (1, 9, 0)
