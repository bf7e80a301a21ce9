from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg2
import pytest
from psycopg2 import errors, sql
from psycopg2.extensions import connection

from tenantferry.backfill.copying import LOAD_SETTINGS
from tenantferry.backfill.pipe import CopyStoppedError, SourceFailedError, copy_between
from tenantferry.connections import ConnectionParams, open_connection

COPY_IN = sql.SQL("COPY public.numbers (n) FROM STDIN (FORMAT binary)").format()


@pytest.fixture
def reader(source_params: ConnectionParams) -> Iterator[connection]:
    with closing(open_connection(source_params, purpose="test reader")) as opened:
        yield opened


@pytest.fixture
def loader(target_params: ConnectionParams, target: connection) -> Iterator[connection]:
    with target.cursor() as cursor:
        cursor.execute("CREATE TABLE public.numbers (n bigint CHECK (n > 0))")
    with closing(
        open_connection(target_params, purpose="test loader", settings=LOAD_SETTINGS)
    ) as opened:
        yield opened


def copy(
    reader: connection,
    loader: connection,
    select: str,
    *,
    stop: threading.Event | None = None,
    is_refused: Callable[[], bool] = lambda: False,
    sizes: list[int] | None = None,
) -> tuple[int, int]:
    return copy_between(
        reader,
        loader,
        copy_out=sql.SQL("COPY ({}) TO STDOUT (FORMAT binary)").format(sql.SQL(select)),
        copy_in=COPY_IN,
        stop=stop or threading.Event(),
        is_refused=is_refused,
        count_bytes=(sizes if sizes is not None else []).append,
    )


def test_copy_between_counts_rows_and_bytes(reader: connection, loader: connection) -> None:
    sizes: list[int] = []

    rows = copy(reader, loader, "SELECT n::bigint FROM generate_series(1, 70000) n", sizes=sizes)

    # A row has 2 bytes for the field count, 4 for the length and 8 for the value.
    assert rows == (70000, 70000)
    assert sum(sizes) == 70000 * 14 + 21


def test_copy_between_names_the_source_s_error_when_it_fails_in_the_middle(
    reader: connection, loader: connection
) -> None:
    failing = "SELECT (1 + 0 * (1 / (1000 - n)))::bigint FROM generate_series(1, 2000) n"

    with pytest.raises(SourceFailedError) as raised:
        copy(reader, loader, failing)

    assert isinstance(raised.value.cause, errors.DivisionByZero)
    loader.rollback()
    with loader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM public.numbers")
        assert cursor.fetchone() == (0,)


def test_copy_between_ends_soon_when_the_target_refuses_the_first_row(
    reader: connection, loader: connection, target: connection
) -> None:
    sizes: list[int] = []
    endless = "SELECT -generate_series(1, 1000000000)::bigint"
    pid = loader.info.backend_pid

    def is_refused() -> bool:
        with target.cursor() as cursor:
            cursor.execute(
                "SELECT state LIKE '%%aborted%%' FROM pg_stat_activity WHERE pid = %s", (pid,)
            )
            return cursor.fetchone() == (True,)

    with pytest.raises(errors.CheckViolation):
        copy(reader, loader, endless, is_refused=is_refused, sizes=sizes)

    assert sum(sizes) < 500 << 20


def test_copy_between_ends_soon_when_the_target_s_session_is_ended(
    reader: connection, loader: connection, target: connection
) -> None:
    pid = loader.info.backend_pid

    def end_session() -> None:
        with target.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))

    timer = threading.Timer(0.3, end_session)
    timer.start()
    started = time.monotonic()

    with pytest.raises(psycopg2.OperationalError):
        copy(reader, loader, "SELECT generate_series(1, 1000000000)::bigint")

    timer.join()
    assert time.monotonic() - started < 20


def test_copy_between_ends_soon_when_it_is_told_to_stop(
    reader: connection, loader: connection
) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    started = time.monotonic()

    with pytest.raises(CopyStoppedError):
        copy(reader, loader, "SELECT generate_series(1, 1000000000)::bigint", stop=stop)

    timer.join()
    assert time.monotonic() - started < 20


def test_copy_between_reads_nothing_until_it_may(reader: connection, loader: connection) -> None:
    answers = [False, False, True]
    sizes: list[int] = []
    sizes_then: list[int] = []

    def may_go() -> bool:
        sizes_then.append(len(sizes))
        return answers.pop(0) if answers else True

    copy_between(
        reader,
        loader,
        copy_out=sql.SQL("COPY (SELECT 1::bigint) TO STDOUT (FORMAT binary)").format(),
        copy_in=COPY_IN,
        stop=threading.Event(),
        is_refused=lambda: False,
        count_bytes=sizes.append,
        may_go=may_go,
    )

    assert sizes_then[:3] == [0, 0, 0]
    assert len(sizes_then) == len(sizes) + 2


def test_copy_between_ends_soon_when_it_is_told_to_stop_while_it_may_not_go_on(
    reader: connection, loader: connection
) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()

    with pytest.raises(CopyStoppedError):
        copy_between(
            reader,
            loader,
            copy_out=sql.SQL("COPY (SELECT 1::bigint) TO STDOUT (FORMAT binary)").format(),
            copy_in=COPY_IN,
            stop=stop,
            is_refused=lambda: False,
            count_bytes=lambda _: None,
            may_go=lambda: False,
        )

    timer.join()


def test_copy_between_moves_a_row_larger_than_its_buffers(
    reader: connection, loader: connection, target: connection
) -> None:
    with target.cursor() as cursor:
        cursor.execute("ALTER TABLE public.numbers ADD COLUMN wide text")

    rows = copy_between(
        reader,
        loader,
        copy_out=sql.SQL(
            "COPY (SELECT 1::bigint, repeat('x', 5000000)) TO STDOUT (FORMAT binary)"
        ).format(),
        copy_in=sql.SQL("COPY public.numbers (n, wide) FROM STDIN (FORMAT binary)").format(),
        stop=threading.Event(),
        is_refused=lambda: False,
        count_bytes=lambda _: None,
    )

    loader.commit()
    assert rows == (1, 1)
    with target.cursor() as cursor:
        cursor.execute("SELECT length(wide) FROM public.numbers")
        assert cursor.fetchone() == (5000000,)


def test_copy_between_ends_soon_when_it_is_told_to_stop_before_the_first_row(
    reader: connection, loader: connection
) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)
    timer.start()
    started = time.monotonic()

    with pytest.raises(CopyStoppedError):
        copy(reader, loader, "SELECT 1::bigint FROM pg_sleep(60)", stop=stop)

    timer.join()
    assert time.monotonic() - started < 20
