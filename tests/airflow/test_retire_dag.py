from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.io import attach
from airflow.serialization.serialized_objects import DagSerialization
from fsspec.implementations.memory import (  # type: ignore[import-untyped]  # it has no types
    MemoryFileSystem,
)
from psycopg2.extensions import connection

from tenantferry.archive.storage import check_writable, read_chunks, read_size, store
from tenantferry.connections import ConnectionParams
from tenantferry.errors import PermanentError
from tenantferry.fleet import load_fleet
from tenantferry.moves.retire import Approval
from tenantferry_airflow import operators, retire
from tenantferry_airflow.retire import (
    ApproveRetireOperator,
    ArchiveOperator,
    BeginRetireOperator,
    FindRetirableOperator,
    LockSourceOperator,
    VerifyArchiveOperator,
    _folder,
    _require_archive,
)

DAGS = Path(__file__).resolve().parents[2] / "dags"
STEPS = [BeginRetireOperator, ArchiveOperator, VerifyArchiveOperator, LockSourceOperator]


FACTS = {"phase": "live", "live_since": "then", "grace_ended": "now", "lost": "no"}


class Instance:
    """What a task asks of its instance."""

    def __init__(self, map_index: int = -1, given: Any = None) -> None:
        self.map_index, self.given = map_index, given
        self.pushed: dict[str, Any] = {}
        self.found = [
            {**FACTS, "tenant": "acme", "attempt": 7},
            {**FACTS, "tenant": "globex", "attempt": 9},
        ]

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: str, key: str = "return_value", map_indexes: int = -1) -> Any:
        if task_ids == "find_tenants":
            return self.found
        assert map_indexes == self.map_index
        return self.pushed.get(key, self.given)


def declare_archive(fleet_file: Path, extra: str = "", *, url: str = "file:///srv/archive") -> None:
    with fleet_file.open("a", encoding="utf-8") as file:
        file.write(f"archive: {{url: '{url}', restore_conn_id: spare{extra}}}\n")


def parse() -> DagBag:
    return DagBag(dag_folder=str(DAGS / "retire.py"), bundle_path=DAGS, bundle_name="dags-folder")


def require_dag() -> Any:
    bag = parse()
    assert bag.import_errors == {}
    return bag.dags["retire_tenants"]


def test_each_tenant_is_approved_archived_proved_and_locked_in_this_order(
    fleet_file: Path,
) -> None:
    declare_archive(fleet_file)

    dag = require_dag()

    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == {
        "find_tenants": {"approve", "begin", "archive", "verify", "lock"},
        "approve": {"begin"},
        "begin": {"archive"},
        "archive": {"verify"},
        "verify": {"lock"},
        "lock": set(),
    }
    assert {task.trigger_rule for task in dag.tasks} == {TriggerRule.ALL_SUCCESS}
    assert {task.get_closest_mapped_task_group().group_id for task in dag.tasks
            if task.task_id != "find_tenants"} == {"retire"}  # fmt: skip


def test_a_rejection_or_no_answer_skips_and_is_no_failure(fleet_file: Path) -> None:
    approve: Any = require_dag().get_task("approve")

    assert type(approve).__name__ == ApproveRetireOperator.__name__
    assert approve.defaults == ["Reject"]
    # The next run, which waits for this one, is at most a day away.
    assert approve.response_timeout < timedelta(hours=24)
    # A request whose worker was lost is made again.
    assert approve.retries > 0


@pytest.mark.parametrize("chosen", [["Reject"], []], ids=["rejected", "unclear"])
def test_whatever_is_not_an_approval_skips_the_task_itself(chosen: list[str]) -> None:
    """The tasks after it then are skipped by their trigger rule, in a mapped group too."""
    approve = ApproveRetireOperator(task_id="approve", subject="Retire?")

    with pytest.raises(AirflowSkipException, match="nothing changes"):
        approve.execute_complete({}, answer(chosen))


def test_an_approval_lets_the_tasks_after_it_run() -> None:
    approve = ApproveRetireOperator(task_id="approve", subject="Retire?")

    instance = Instance(map_index=1)
    instance.pushed["asked"] = {"tenant": "globex", "attempt": 9}

    given = approve.execute_complete({"ti": instance}, answer(["Approve"]))  # type: ignore[typeddict-item]

    assert given["chosen_options"] == ["Approve"]


def test_an_approval_is_bound_to_the_tenant_that_people_were_asked_about(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approve = ApproveRetireOperator(task_id="approve", subject="Retire?")
    instance = Instance(map_index=1)
    context: Any = {"ti": instance}
    monkeypatch.setattr(ApprovalOperator, "execute", lambda *_: None)
    approve.execute(context)

    # Found anew while a person thought about it: another tenant stands at that place.
    instance.found.insert(0, {**FACTS, "tenant": "hooli", "attempt": 3})
    given = approve.execute_complete(context, answer(["Approve"]))

    assert (given["tenant"], given["attempt"]) == ("globex", 9)
    begin = BeginRetireOperator(task_id="begin", tenant="acme")
    monkeypatch.setattr(operators, "read_move", lambda *_, **__: None)
    approvals: list[Approval] = []

    def take(_: object, approval: Approval, *where: object) -> Approval:
        approvals.append(approval)
        return approval

    monkeypatch.setattr(retire, "begin_retire", take)
    for name in ("_require_archive", "_folder", "_restore_server"):
        monkeypatch.setattr(retire, name, lambda *_: None)
    begin.execute({"ti": Instance(map_index=1, given=given), "run_id": "r"})  # type: ignore[typeddict-item]
    assert approvals == [Approval("globex", 9)]


def test_begin_retires_nobody_where_the_request_was_skipped_over(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "read_move", lambda *_, **__: None)
    begin = BeginRetireOperator(task_id="begin", tenant="acme")

    with pytest.raises(PermanentError, match="nobody has approved"):
        begin.execute({"ti": Instance(map_index=1), "run_id": "r"})  # type: ignore[typeddict-item]


def answer(chosen: list[str]) -> dict[str, Any]:
    return {
        "chosen_options": chosen,
        "params_input": {},
        "responded_at": datetime.now(UTC),
        "responded_by_user": None,
    }


def test_the_request_names_the_tenant_of_its_own_place(fleet_file: Path) -> None:
    approve: Any = require_dag().get_task("approve")

    context = {"ti": Instance(map_index=1)}

    assert approve.render_template(approve.subject, context) == "Retire the source of globex?"
    assert "| tenant | **globex** |" in approve.render_template(approve.body, context)


@pytest.mark.parametrize(
    ("extra", "cron"),
    [("", "0 0 * * *"), (", schedule: '0 4 * * 1'", "0 4 * * 1"), (", schedule: null", None)],
    ids=["default", "weekly", "by hand"],
)
def test_it_runs_as_the_fleet_file_says(fleet_file: Path, extra: str, cron: str | None) -> None:
    declare_archive(fleet_file, extra)

    dag = require_dag()

    assert getattr(dag.timetable, "expression", None) == cron
    assert (dag.catchup, dag.max_active_runs, dag.is_paused_upon_creation) == (False, 1, False)


def test_without_an_archive_nothing_runs_by_itself(fleet_file: Path) -> None:
    assert require_dag().schedule is None


def test_each_task_explains_itself_and_follows_the_retry_policy(fleet_file: Path) -> None:
    dag = require_dag()

    assert "nobody gets into the source" in " ".join(str(dag.doc_md).split())
    assert all("*Clear it*" in str(task.doc_md) for task in dag.tasks)
    assert all(task.retry_policy is not None for task in dag.tasks if task.task_id != "approve")


def test_the_dag_survives_serialization(fleet_file: Path) -> None:
    restored = DagSerialization.from_dict(DagSerialization.to_dict(require_dag()))

    assert sorted(restored.task_ids) == [
        "approve", "archive", "begin", "find_tenants", "lock", "verify",
    ]  # fmt: skip


def test_a_task_of_a_tenant_does_not_build_it(
    fleet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "migrate_acme")

    assert parse().dags == {}


@pytest.mark.parametrize("operator", STEPS, ids=lambda operator: operator.__name__)
def test_a_constructor_only_assigns_because_fields_are_still_templates(operator: Any) -> None:
    made = operator(task_id="step", tenant="{{ params.tenant }}")

    made.render_template_fields({"params": {"tenant": "acme"}})
    assert made.tenant == "acme"


def test_find_tenants_is_skipped_where_no_archive_is_declared(fleet_file: Path) -> None:
    with pytest.raises(AirflowSkipException, match="no tenant can be retired"):
        FindRetirableOperator(task_id="find_tenants").execute({"ti": Instance()})  # type: ignore[typeddict-item]


@pytest.mark.parametrize("operator", [ArchiveOperator, VerifyArchiveOperator])
def test_a_step_says_what_is_missing_where_the_archive_was_taken_out(
    fleet_file: Path, operator: Any
) -> None:
    with pytest.raises(PermanentError, match='has no "archive"'):
        operator(task_id="step", tenant="acme").take_step(None)


def test_a_storage_that_nobody_knows_is_named(fleet_file: Path) -> None:
    declare_archive(fleet_file)
    declared = fleet_file.read_text("utf-8")
    fleet_file.write_text(declared.replace("file:///srv", "nfs://srv"), "utf-8")

    with pytest.raises(PermanentError, match="no storage is known") as caught:
        ArchiveOperator(task_id="step", tenant="acme").take_step(None)  # type: ignore[arg-type]

    assert "nfs://srv/archive" in caught.value.message


def test_find_tenants_names_those_that_are_due_and_what_people_are_told(
    fleet_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: connection,
    target_params: ConnectionParams,
) -> None:
    declare_archive(fleet_file)
    fields = {
        "conn_type": "postgres",
        "host": target_params.host,
        "port": target_params.port,
        "login": target_params.user,
        "password": target_params.password,
        "schema": target_params.database,
    }
    monkeypatch.setenv("AIRFLOW_CONN_TARGET", json.dumps(fields))
    with target.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenantferry.tenants (tenant, tenant_id, phase, source_identity)"
            " SELECT t, gen_random_uuid(), 'live', t"
            " FROM unnest('{acme,globex,hooli}'::text[]) AS t;"
            "INSERT INTO tenantferry.write_pauses (tenant, deadline, resumed_at)"
            " SELECT tenant, now(), now() FROM tenantferry.tenants;"
            "INSERT INTO tenantferry.graces (tenant, attempt, start_lsn, ends_at, lost_reason)"
            " SELECT tenant, id, '0/1', now() + CASE tenant WHEN 'globex' THEN interval '1 day'"
            " ELSE interval '-1 day' END, 'Too far behind.' FROM tenantferry.write_pauses"
        )
        cursor.execute("SELECT id FROM tenantferry.write_pauses WHERE tenant = 'acme'")
        [(attempt,)] = cursor.fetchall()
    instance = Instance()

    keys = FindRetirableOperator(task_id="find_tenants").execute({"ti": instance})  # type: ignore[typeddict-item]

    assert keys == ["acme"]  # hooli is not declared
    [facts] = instance.pushed["facts"]
    assert (facts["tenant"], facts["phase"], facts["lost"]) == ("acme", "live", "Too far behind.")
    assert facts["attempt"] == attempt
    assert facts["grace_ended"].endswith("UTC")


def test_the_archive_of_the_fleet_file_has_a_schedule(fleet_file: Path) -> None:
    declare_archive(fleet_file)

    archive = load_fleet(fleet_file).archive

    assert archive is not None
    assert archive.schedule == "@daily"


@pytest.fixture
def bucket() -> Iterator[str]:
    """The url of a storage without a disk, as a provider attaches one."""
    memory = MemoryFileSystem()
    attach("memory", fs=memory)
    yield "memory://bucket/archive"
    memory.store.clear()


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_a_dump_may_go_to_any_storage_that_airflow_knows(
    fleet_file: Path, tmp_path: Path, bucket: str, kind: str
) -> None:
    declare_archive(fleet_file, url=bucket if kind == "bucket" else f"file://{tmp_path}/archive")
    path = _folder(_require_archive()) / "acme" / "retire_1.dump"

    def fail() -> Iterator[bytes]:
        yield b"half"
        raise PermanentError("pg_dump failed")

    check_writable(path.parent / "begin.check")
    assert store(path, [b"first"]).bytes == 5
    assert store(path, [b"again", b"!"]).bytes == 6
    with pytest.raises(PermanentError, match="pg_dump failed"):
        store(path.parent / "retire_2.dump", fail())

    assert b"".join(read_chunks(path)) == b"again!"
    assert read_size(path) == 6
    assert read_size(path.parent / "retire_2.dump") is None
    assert [file.name for file in path.parent.iterdir()] == ["retire_1.dump"]
