"""A cutover loses no write, and leaves nothing behind but the fence."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from move_stage import Stage, rows, written
from tenantferry.connections import open_client_connection, open_connection
from tenantferry.errors import PermanentError, TransientError
from tenantferry.moves.cutover import cutover
from tenantferry.moves.probe import probe
from traffic_clients import Writers


def test_cutover_under_load_loses_no_write_and_fails_none(stage: Stage) -> None:
    with Writers([stage.client] * 4) as writers:
        writers.wait_for(100)
        summary = cutover(stage.move)
        writers.wait_for(100)

    assert writers.errors == []
    assert written(stage, "target") == sorted(writers.acknowledged)
    assert len(written(stage, "source")) <= len(writers.acknowledged) - 100
    assert summary.write_pause_ms < 500, summary.steps
    assert list(summary.steps) == [
        "paused", "fenced", "drained", "compared", "sequences", "flipped", "resumed",
    ]  # fmt: skip
    assert stage.phase() == "live"
    assert stage.ask("INSERT INTO counted (note) VALUES ('new') RETURNING id") == [(10,)]
    assert cutover(stage.move) == summary


def test_live_tenant_leaves_nothing_behind_but_the_fence(stage: Stage) -> None:
    cutover(stage.move)

    with pytest.raises(PermanentError, match="could not connect"):
        open_connection(
            replace(stage.move.source, user="app_owner", password="owner"), purpose="stale pooler"
        )
    assert rows(stage.source, "SELECT slot_name FROM pg_replication_slots"
                " WHERE database = current_database()") == []  # fmt: skip
    assert rows(stage.source, "SELECT pubname FROM pg_publication") == []
    assert "tenantferry_acme" not in stage.pooler.aliases_file.read_text("utf-8")
    assert probe(stage.move).role == "tenant_acme"
    [(probed,)] = rows(stage.target, "SELECT probed_at IS NOT NULL FROM tenantferry.write_pauses")
    assert probed


def test_guard_shows_no_credentials(stage: Stage) -> None:
    shown: list[bytes] = []

    def look(step: str) -> None:
        if step == "prepared":
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text("utf-8")
            for pid in children.split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"tenantferry.traffic.guard" in command:
                    shown.extend((command, Path(f"/proc/{pid}/environ").read_bytes()))

    cutover(stage.move, on_step=look)

    assert len(shown) == 2
    for secret in (stage.move.source.password, stage.pooler.admin.password):
        assert not any(secret.encode() in text for text in shown)


def test_login_of_another_tenant_never_reaches_this_one(stage: Stage) -> None:
    stage.pooler.set_user("globex_app", "globex")
    stranger = stage.pooler.client("acme", "globex_app", "globex")
    refused: list[str] = []

    for act in (lambda: None, lambda: cutover(stage.move)):
        act()
        with pytest.raises((PermanentError, TransientError)) as caught:
            open_client_connection(stranger, purpose="stranger")
        refused.append(caught.value.detail)

    assert ["login rejected" in detail for detail in refused] == [True, True]


def test_the_password_of_the_tenant_role_stands_in_the_alias_file_alone(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    cutover(stage.move)

    [line] = [
        line
        for line in stage.pooler.aliases_file.read_text("utf-8").splitlines()
        if line.startswith("acme = ")
    ]
    password = line.rpartition("password=")[2]
    assert len(password) > 30
    assert password not in caplog.text
    [(verifier,)] = rows(stage.target, "SELECT string_agg(undo_reason || fence::text, '')"
                         " FROM tenantferry.write_pauses") or [("",)]  # fmt: skip
    assert password not in str(verifier)
