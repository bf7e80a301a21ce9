"""
docs/runbook.md answers on-call, with names that there are.

What the engine's hints and the Dags' own documents name has to be there, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG

from tenantferry.control.graces import REVERSE_SLOT
from tenantferry.control.phases import Phase
from tenantferry.watch.slot_use import WITNESS_PREFIX

PROJECT_ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (PROJECT_ROOT / "docs" / "runbook.md").read_text("utf-8")
DOCUMENTS = {path.name: path.read_text("utf-8") for path in (PROJECT_ROOT / "dags").glob("*.md")}
# Words of Airflow and Postgres.
FOREIGN = {
    "up_for_retry",
    "upstream_failed",
    "return_value",
    "report",
    "pg_dump",
    "pg_restore",
    "default_transaction_read_only",
    "sync_replication_slots",
    "synchronized_standby_slots",
}
NAME = r"[a-z]+(?:_[a-z]+)*"
DAG_NAME = rf"{NAME}(?:_<tenant>)?"


def split_sections(text: str) -> dict[str, str]:
    _, *parts = text.split("\n## ")
    return {heading: body for heading, _, body in (part.partition("\n") for part in parts)}


SECTIONS = split_sections(RUNBOOK)
ANCHORS = {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in SECTIONS}


def names_in(text: str) -> set[str]:
    return set(re.findall(NAME, text))


def read_texts(folder: str) -> Iterator[str]:
    """Yield every string of the code in a folder, with ``<tenant>`` for what is put into it."""
    for path in sorted((PROJECT_ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "<tenant>"
                    for part in node.values
                )
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.fixture
def dags(fleet_file: Path) -> dict[str, DAG]:
    """All Dags by their ids; that of a tenant as ``migrate_<tenant>``."""
    assert fleet_file.exists()
    bag = DagBag(dag_folder=str(PROJECT_ROOT / "dags"), bundle_name="dags-folder")
    assert bag.import_errors == {}
    return {
        dag_id.replace("acme", "<tenant>"): dag
        for dag_id, dag in bag.dags.items()
        if "globex" not in dag_id
    }


def task_ids(dags: Mapping[str, DAG]) -> set[str]:
    return {task_id for dag in dags.values() for task_id in dag.task_ids}


def test_the_runbook_names_only_what_there_is(dags: dict[str, DAG]) -> None:
    known = {str(phase) for phase in Phase} | FOREIGN
    known |= {REVERSE_SLOT, f"{WITNESS_PREFIX}<tenant>", *dags, *task_ids(dags)}
    for dag in dags.values():
        known |= set(dag.params)
    for file in ("control/control.sql", "fleet/declaration.py", "fleet/operation.py"):
        known |= names_in((PROJECT_ROOT / "include" / "tenantferry" / file).read_text("utf-8"))

    told = re.findall(r"`((?:[a-z]+\.)?[a-z_]+(?:<tenant>)?)`", RUNBOOK)

    assert len(told) > 40
    assert [name for name in told if name.split(".")[-1] not in known] == []


@pytest.mark.parametrize("heading", SECTIONS)
def test_each_section_says_where_to_look_what_to_do_and_what_that_undoes(heading: str) -> None:
    parts = re.findall(
        r"^(\*Look at\*|\*Do\*:|\*What that undoes:\*) (?=\S)|^(\*Do\*:)$",
        SECTIONS[heading],
        re.MULTILINE,
    )

    assert ["".join(part) for part in parts] == ["*Look at*", "*Do*:", "*What that undoes:*"]
    assert SECTIONS[heading].lstrip().startswith("*Look at*")


def test_the_first_table_names_every_dag(dags: dict[str, DAG]) -> None:
    heading, first = next(iter(SECTIONS.items()))
    rows = "\n".join(line for line in first.splitlines() if line.startswith("|"))

    assert heading == "What is on fire?"
    assert [dag_id for dag_id in dags if f"`{dag_id}`" not in rows] == []


def test_each_task_of_a_dag_in_the_runbook_is_one_of_its_tasks(dags: dict[str, DAG]) -> None:
    pairs = re.findall(rf"`({NAME})` of\s+`({DAG_NAME})`", RUNBOOK)

    found = [(task, dag) for task, dag in pairs if dag in dags]

    assert len(found) > 15
    assert [(task, dag) for task, dag in found if task not in dags[dag].task_ids] == []


def test_each_red_task_of_a_table_is_a_task(dags: dict[str, DAG]) -> None:
    tables = re.findall(r"^\| red task \|.*\n\|[-|]+\n((?:\|.*\n)+)", RUNBOOK, re.MULTILINE)
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()]
    named = [name for cell in cells for name in re.findall(rf"`({DAG_NAME})`", cell)]

    assert len(tables) == 4
    assert [name for name in named if name not in task_ids(dags) | set(dags)] == []


def test_each_task_that_may_be_red_stands_in_the_runbook(dags: dict[str, DAG]) -> None:
    # It waits for ever, and fails with nothing.
    wanted = task_ids(dags) - {"wait_for_slot"}

    assert [name for name in sorted(wanted) if f"`{name}`" not in RUNBOOK] == []


def test_the_links_within_the_runbook_lead_somewhere() -> None:
    wanted = set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK))

    assert wanted - ANCHORS == set()


def test_the_places_of_the_runbook_that_others_name_are_there() -> None:
    texts = [*DOCUMENTS.values(), *read_texts("include"), *read_texts("plugins")]
    texts += [path.read_text("utf-8") for path in PROJECT_ROOT.glob("*.md")]
    named = [anchor for text in texts for anchor in re.findall(r"runbook\.md#([\w-]+)", text)]

    assert len(named) >= len(DOCUMENTS)
    assert set(named) - ANCHORS == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_document_of_a_dag_names_its_place_in_the_runbook(document: str) -> None:
    assert re.search(r"docs/runbook\.md#[\w-]+", DOCUMENTS[document])


def test_the_tasks_and_dags_that_hints_name_are_there(dags: dict[str, DAG]) -> None:
    texts = [*read_texts("include/tenantferry"), *read_texts("plugins")]
    tasks = [name for text in texts for name in re.findall(rf'\b[Tt]ask "({NAME})"', text)]
    tasks += [name for text in texts for name in re.findall(rf'\b[Cc]lear "({NAME})"', text)]
    named = [name for text in texts for name in re.findall(rf'\bDag "({DAG_NAME})"', text)]

    assert len(tasks) > 20
    assert len(named) > 5
    assert set(tasks) - task_ids(dags) == set()
    assert set(named) - dags.keys() == set()
