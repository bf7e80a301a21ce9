"""A rollback that is refused pauses nobody and leaves the tenant live."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from move_stage import Stage, rows, with_tenant
from rollback_stage import aliases, assert_still_live, create_table, who
from tenantferry.connections import open_connection
from tenantferry.control.graces import lose_way_back, read_grace
from tenantferry.control.phases import IllegalPhaseError, Phase
from tenantferry.errors import PermanentError, TransientError
from tenantferry.fleet import TableKind
from tenantferry.local.postgres import PostgresServer
from tenantferry.moves.cutover import cutover
from tenantferry.moves.rollback import rollback
from tenantferry.moves.rollback_readiness import speaks_english
from traffic_clients import Writers


def test_rollback_of_a_tenant_that_is_not_live_is_refused(stage: Stage) -> None:
    with pytest.raises(IllegalPhaseError, match='cannot be rolled back in phase "validated"'):
        rollback(stage.move)


def test_rollback_without_a_way_back_is_refused(live: Stage) -> None:
    grace = read_grace(live.target, "acme")
    assert grace is not None
    lose_way_back(live.target, grace.id, reason="The test says so.")

    with pytest.raises(PermanentError, match="has lost its way back") as caught:
        rollback(live.move)

    assert "The test says so." in caught.value.detail
    assert_still_live(live)


def test_rollback_pauses_nobody_when_the_reverse_stream_is_down(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    cutover(stage.move)
    move = with_tenant(stage.move, max_write_pause_seconds=1, lag_threshold_seconds=1)

    with pytest.raises(TransientError, match="reverse stream of tenant"):
        rollback(move)

    assert_still_live(stage)
    attempts = "SELECT count(*) FROM tenantferry.write_pauses WHERE direction = 'reverse'"
    assert rows(stage.target, attempts) == [(0,)]


def test_rollback_is_refused_while_a_table_that_went_live_is_declared_not_to_move(
    stage: Stage,
) -> None:
    cutover(stage.move)
    declared = stage.move
    quick = with_tenant(declared, lag_threshold_seconds=1)
    stage.move = with_tenant(quick, tables={"public.written": TableKind.SKIP})
    with stage.reversing():
        stage.ask("INSERT INTO public.written VALUES (77)")
        with pytest.raises(TransientError, match="is declared not to move any more"):
            rollback(stage.move)
    assert_still_live(stage)

    stage.move = declared
    with stage.reversing():
        rollback(stage.move)
    assert stage.phase() == Phase.STREAMING
    assert rows(stage.source, "SELECT id FROM public.written") == [(77,)]


def test_rollback_pauses_nobody_when_the_source_is_down(
    live: Stage, source_server: PostgresServer
) -> None:
    gone = replace(live.move, source=replace(live.move.source, port=1))

    with Writers([live.client]) as writers:
        writers.wait_for(10)
        with pytest.raises(TransientError, match="could not connect"):
            rollback(gone)
        writers.wait_for(10)

    assert writers.errors == []
    assert_still_live(live)


def test_rollback_refuses_a_source_that_is_not_fenced_any_more(
    live: Stage, source_server: PostgresServer
) -> None:
    database = live.move.source.database
    source_server.psql("-c", f"GRANT CONNECT ON DATABASE {database} TO app_owner")
    owner = replace(live.move.source, user="app_owner", password="owner")
    with closing(open_connection(owner, purpose="stray")) as stray, stray:
        rows(stray, "INSERT INTO public.written VALUES (-1)")

    with pytest.raises(PermanentError, match="is not fenced any more"):
        rollback(live.move)

    assert who(live) == "tenant_acme"


def test_rollback_pauses_nobody_when_the_source_does_not_know_the_login_any_more(
    live: Stage, source_server: PostgresServer
) -> None:
    source_server.psql("-c", "ALTER ROLE app_owner PASSWORD 'changed'")
    try:
        with pytest.raises(PermanentError, match="cannot take the application") as caught:
            rollback(live.move)
    finally:
        source_server.psql("-c", "ALTER ROLE app_owner PASSWORD 'owner'")

    assert "password authentication failed" in caught.value.detail
    assert "tenantferry_acme" not in aliases(live)
    assert_still_live(live)


@pytest.mark.parametrize("is_english", [False, True], ids=["german", "english"])
def test_rollback_does_not_depend_on_the_language_of_the_source(
    live: Stage, monkeypatch: pytest.MonkeyPatch, *, is_english: bool
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TransientError("could not connect", detail="FATAL: keine Berechtigung für Datenbank")

    readiness = "tenantferry.moves.rollback_readiness"
    monkeypatch.setattr(f"{readiness}.open_client_connection", refuse)
    monkeypatch.setattr(f"{readiness}.speaks_english", lambda _: is_english)

    if is_english:
        with pytest.raises(TransientError, match="cannot take the application"):
            rollback(live.move)
        assert_still_live(live)
    else:
        rollback(live.move)
        assert who(live) == "app_owner"


def test_speaks_english_knows_the_language_of_the_servers_of_the_tests(stage: Stage) -> None:
    assert speaks_english(stage.source)


def test_rollback_refuses_an_alias_file_that_forgot_where_the_alias_pointed(live: Stage) -> None:
    text = "\n".join(line for line in aliases(live).splitlines() if "; before" not in line)
    live.pooler.aliases_file.write_text(f"{text}\n", "utf-8")

    with pytest.raises(PermanentError, match="does not tell where alias"):
        rollback(live.move)

    assert_still_live(live)


def test_rollback_changes_nothing_when_pgbouncer_is_down(live: Stage) -> None:
    live.pooler.stop()

    with pytest.raises(TransientError, match='"one" could not be reached'):
        rollback(live.move)

    live.pooler.start()
    assert_still_live(live)


def test_rollback_refuses_a_schema_that_changed_since(live: Stage) -> None:
    rows(live.source, "ALTER TABLE public.counted ADD COLUMN more text")

    with pytest.raises(PermanentError, match="changed since it was prepared"):
        rollback(live.move)

    assert_still_live(live)


def test_rollback_is_refused_where_the_tenant_wrote_to_a_table_that_was_not_followed(
    live: Stage,
) -> None:
    create_table(live)
    live.ask("INSERT INTO added VALUES (DEFAULT, 1, 'x') RETURNING id")

    with pytest.raises(PermanentError, match="has lost its way back") as caught:
        rollback(live.move)

    assert 'wrote to table "public.added" before' in caught.value.detail
    assert live.ask("SELECT id FROM added") == [(1,)]
    assert_still_live(live)


def test_rollback_pauses_nobody_when_the_target_has_no_replication_origin_left(
    live: Stage, target_server: PostgresServer
) -> None:
    used: list[str] = []
    [(most,)] = rows(
        live.target,
        "SELECT coalesce(current_setting('max_active_replication_origins', true),"
        " current_setting('max_replication_slots'))::integer"
        " - (SELECT count(*) FROM pg_replication_origin)::integer",
    )
    try:
        for number in range(most):
            used.append(f"other_{number}")
            rows(live.target, "SELECT pg_replication_origin_create(%s)", used[-1])
            rows(live.target, "SELECT pg_replication_origin_advance(%s, '0/1')", used[-1])

        with pytest.raises(TransientError, match="no replication origin of the target is left"):
            rollback(live.move)
    finally:
        for name in used:
            rows(live.target, "SELECT pg_replication_origin_drop(%s)", name)

    attempts = "SELECT count(*) FROM tenantferry.write_pauses WHERE direction = 'reverse'"
    assert rows(live.target, attempts) == [(0,)]
    assert_still_live(live)


def test_slot_creation_that_has_to_wait_holds_up_nobody(
    live: Stage, source_server: PostgresServer
) -> None:
    # Gotcha 11.
    move = with_tenant(live.move, slot_timeout_seconds=0.5)
    with closing(open_connection(source_server.superuser, purpose="long")) as long:
        rows(long, "CREATE TABLE public.rolled_back_later ()")
        with Writers([live.client]) as writers:
            writers.wait_for(10)
            with pytest.raises(TransientError, match="could not create replication slot"):
                rollback(move)
            writers.wait_for(10)
        long.rollback()

    assert writers.errors == []
    assert_still_live(live)
