"""A source that changes its schema in flight: the stream stops, says how to go on, and goes on."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest

from tenantferry.control.streams import StreamState
from tenantferry.schema.quoting import quote_text
from tenantferry.stream.drift import DriftError
from tenantferry.stream.labels import plan_labels

OTHER_ID = UUID("22222222-2222-2222-2222-222222222222")
DRIFTS = {
    "column added": (
        "ALTER TABLE items ADD extra integer",
        "INSERT INTO items VALUES (2, 'b', 7)",
        "ALTER TABLE public.items ADD COLUMN extra integer;",
    ),
    "column added with a default": (
        "ALTER TABLE items ADD extra int DEFAULT 5; ALTER TABLE items ALTER extra SET DEFAULT 6",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN extra integer DEFAULT '5',"
        " ALTER COLUMN extra SET DEFAULT 6;",
    ),
    "column added with a default that is gone again": (
        "ALTER TABLE items ADD extra int DEFAULT 5; ALTER TABLE items ALTER extra DROP DEFAULT",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN extra integer DEFAULT '5',"
        " ALTER COLUMN extra SET DEFAULT NULL;",
    ),
    "column added whose arrays are spelled with semicolons": (
        "ALTER TABLE items ADD place box DEFAULT '(1,1),(0,0)'",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN place box DEFAULT '(1,1),(0,0)',"
        " ALTER COLUMN place SET DEFAULT '(1,1),(0,0)'::box;",
    ),
    "column added with a stable default": (
        "ALTER TABLE items ADD created timestamptz DEFAULT now()",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN created timestamp with time zone DEFAULT '<time>',"
        " ALTER COLUMN created SET DEFAULT now();",
    ),
    "column added with a volatile default": (
        "ALTER TABLE items ADD token uuid DEFAULT gen_random_uuid()",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN token uuid,"
        " ALTER COLUMN token SET DEFAULT gen_random_uuid();",
    ),
    "column added with a sequence": (
        "ALTER TABLE items ADD number serial",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN number integer;",
    ),
    "column added with a value of all older rows, and a sequence for new ones": (
        "CREATE SEQUENCE numbers; ALTER TABLE items ADD number bigint DEFAULT 5;"
        " ALTER TABLE items ALTER number SET DEFAULT nextval('numbers')",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN number bigint DEFAULT '5',"
        " ALTER COLUMN number SET DEFAULT NULL;",
    ),
    "column added as an identity": (
        "ALTER TABLE items ADD number bigint GENERATED ALWAYS AS IDENTITY",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ADD COLUMN number bigint;",
    ),
    "column dropped": (
        "ALTER TABLE items DROP name",
        "INSERT INTO items VALUES (2)",
        "ALTER TABLE public.items DROP COLUMN name;",
    ),
    "column retyped": (
        "ALTER TABLE items ALTER name TYPE varchar(20)",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items ALTER COLUMN name TYPE character varying(20);",
    ),
    "column renamed": (
        "ALTER TABLE items RENAME name TO label",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items RENAME COLUMN name TO label;",
    ),
    "column dropped and another one added in its place": (
        "ALTER TABLE items DROP name, ADD label text",
        "INSERT INTO items VALUES (2, 'b')",
        "ALTER TABLE public.items DROP COLUMN name;"
        " ALTER TABLE public.items ADD COLUMN label text;",
    ),
    "label added": (
        "ALTER TYPE mood ADD VALUE 'fine' BEFORE 'ok'",
        "INSERT INTO moods VALUES (2, 'fine')",
        "ALTER TYPE public.mood ADD VALUE 'fine' BEFORE 'ok';",
    ),
    "label added where the target has one of another tenant": (
        "ALTER TYPE mood ADD VALUE 'fine'",
        "INSERT INTO moods VALUES (2, 'fine')",
        "ALTER TYPE public.mood ADD VALUE 'fine' AFTER 'ok';",
    ),
    "label renamed": (
        "ALTER TYPE mood RENAME VALUE 'ok' TO 'well'",
        "INSERT INTO moods VALUES (2, 'well')",
        "ALTER TYPE public.mood ADD VALUE 'well';",
    ),
    "label renamed and another one added": (
        "ALTER TYPE mood RENAME VALUE 'ok' TO 'well'; ALTER TYPE mood ADD VALUE 'fine'",
        "INSERT INTO moods VALUES (2, 'fine')",
        "ALTER TYPE public.mood ADD VALUE 'well';"
        " ALTER TYPE public.mood ADD VALUE 'fine' AFTER 'well';",
    ),
}
# What a change did to rows on the source that the target had already: rows of the target that
# differ behind it. A repair copies them, see tests/moves/test_changes_in_flight.py.
LEFT_TO_REPAIR = {
    "column added with a volatile default": ["(1,a2,)", '(10,"old shape",)'],
    "column added with a sequence": ["(1,a2,)", '(10,"old shape",)'],
    "column added as an identity": ["(1,a2,)", '(10,"old shape",)'],
    "label renamed": ["(1,ok)", "(10,ok)"],
    "label renamed and another one added": ["(1,ok)", "(10,ok)"],
}
# A sequence of the source is not there in the target: what reads it is not compared.
READ_DEFAULTS = (
    "SELECT attname, pg_get_expr(adbin, adrelid) FROM pg_attrdef"
    " JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum"
    " WHERE adrelid = 'public.items'::regclass AND attgenerated = ''"
    " AND pg_get_expr(adbin, adrelid) NOT LIKE 'nextval(%' ORDER BY attnum"
)
READ_LABELS = (
    "SELECT oid, enumlabel FROM pg_enum WHERE enumtypid = 'public.mood'::regtype"
    " ORDER BY enumsortorder"
)
# Of the source, and of the target.
LABELS = {
    "none": (["x", "y"], []),
    "all others": (["x", "y"], ["ok"]),
    "as many others": (["ok", "fine"], ["ok", "bad"]),
    "others around": (["a", "b", "c", "d", "e"], ["0", "b", "1", "d", "2"]),
    "the last": (["a", "b", "c"], ["c"]),
    "quoted": (["it's", 'a "b"'], ["it's"]),
}


@pytest.fixture
def drifting(move: Any) -> Any:
    """A tenant that is about to change its schema, beside one that has a label of its own."""
    move.execute(move.owner, "CREATE TYPE public.mood AS ENUM ('ok')")
    move.execute(move.target, "CREATE TYPE public.mood AS ENUM ('ok', 'bad')")
    move.pair("items", "id integer, name text")
    move.pair("moods", "id integer, mood public.mood")
    move.execute(move.target, "INSERT INTO public.moods VALUES (1, 'bad', %s)", str(OTHER_ID))
    move.begin()
    return move


def mend(move: Any, error: BaseException | None) -> str:
    """Run in the target what the hint says, and return it."""
    assert isinstance(error, DriftError)
    assert "has changed" in error.message
    statements = " ".join(re.findall(r"ALTER [^;]*;", error.hint))
    move.execute(move.target, f"SET search_path = public; {statements}")
    move.execute(move.target, "SET search_path = pg_catalog")
    return re.sub(r"'\d{4}-[^']*'", "'<time>'", statements)


def read_differing(move: Any) -> list[str]:
    """Return the tenant's rows of the target that its source does not have."""
    return [
        row
        for table in ("items", "moods")
        for row in sorted(set(move.rows(table)) - set(move.source_rows(table)))
    ]


@pytest.mark.parametrize("drift", DRIFTS)
def test_stream_goes_on_when_the_target_was_mended_as_the_hint_says_gotcha_9(
    drifting: Any, drift: str
) -> None:
    change, write, mending = DRIFTS[drift]
    with drifting.stream() as stream:
        drifting.run("INSERT INTO items VALUES (1, 'a')", "INSERT INTO moods VALUES (1, 'ok')")
        stream.catch_up()

    drifting.execute(drifting.target, "UPDATE tenantferry.streams SET touched_since = position")
    # The stream is away: rows of both shapes wait for it.
    drifting.run(
        "INSERT INTO items VALUES (10, 'old shape')",
        "UPDATE items SET name = 'a2' WHERE id = 1",
        "INSERT INTO moods VALUES (10, 'ok')",
    )
    drifting.run(*change.split("; "), write)
    with drifting.stream() as stream:
        error = stream.failure()
    stopped_at = (drifting.rows_of_ids("items"), drifting.rows_of_ids("moods"))
    assert drifting.record.state is StreamState.FAILED
    # What a statement does to rows that are there already no stream tells: they are compared again.
    assert drifting.record.touched_since is None
    mended = mend(drifting, error)
    with drifting.stream() as stream:
        stream.catch_up()

    assert mended == mending
    # Of the new shape nothing; of an old table everything that came before.
    assert stopped_at in (([1], [1]), ([1, 10], [1]), ([1, 10], [1, 10]))
    assert stopped_at == ([1, 10], [1, 10]) or "label" in drift
    for table in ("items", "moods"):
        assert len(drifting.rows(table)) == len(drifting.source_rows(table))
    assert read_differing(drifting) == LEFT_TO_REPAIR.get(drift, [])
    defaults = drifting.execute(drifting.source, READ_DEFAULTS)
    assert drifting.execute(drifting.target, READ_DEFAULTS) == defaults
    assert drifting.rows("moods", tenant_id=OTHER_ID) == ["(1,bad)"]
    # A label of another tenant looks like one that was renamed.
    assert ("renamed" in error.hint) == ("label" in drift)
    assert ("sequence" in error.hint) == ("sequence" in drift or "identity" in drift)


def test_hint_spells_values_in_full_whatever_the_source_is_set_to(drifting: Any) -> None:
    database = drifting.source_params.database
    drifting.run(
        f"ALTER DATABASE {database} SET extra_float_digits = 0",
        "INSERT INTO items VALUES (1, 'a')",
        "ALTER TABLE items ADD ratio float8 DEFAULT sqrt(2)",
        "INSERT INTO items VALUES (2, 'b')",
    )

    with drifting.stream() as stream:
        mended = mend(drifting, stream.failure())
    with drifting.stream() as stream:
        stream.catch_up()

    assert "DEFAULT '1.4142135623730951'" in mended
    assert drifting.rows("items") == drifting.source_rows("items")


def test_hint_takes_no_default_of_another_type(drifting: Any) -> None:
    drifting.run(
        "ALTER TABLE items ADD extra integer DEFAULT 5",
        "INSERT INTO items VALUES (1, 'a')",
        "ALTER TABLE items ALTER extra TYPE text",
        "INSERT INTO items VALUES (2, 'b')",
    )

    mended = []
    for _ in range(2):
        with drifting.stream() as stream:
            error = stream.failure()
        mended.append(mend(drifting, error))
    with drifting.stream() as stream:
        stream.catch_up()

    assert mended == [
        "ALTER TABLE public.items ADD COLUMN extra integer;",
        "ALTER TABLE public.items ALTER COLUMN extra TYPE text;",
    ]
    assert drifting.rows("items") == drifting.source_rows("items") == ["(1,a,5)", "(2,b,5)"]


@pytest.mark.parametrize("which", LABELS)
def test_plan_labels_adds_all_in_their_order_and_changes_none(move: Any, which: str) -> None:
    labels, known = LABELS[which]
    values = ", ".join(map(quote_text, known))
    move.execute(move.target, f"CREATE TYPE public.mood AS ENUM ({values})")
    before = move.execute(move.target, READ_LABELS)

    for statement in plan_labels("public", "mood", labels, known):
        move.execute(move.target, statement)

    after = move.execute(move.target, READ_LABELS)
    assert [label for _, label in after if label in labels] == labels
    assert [row for row in after if row[1] not in labels or row[1] in known] == before


def test_stream_applies_what_came_before_the_change(drifting: Any) -> None:
    """Also what stands in the same message turn, and not what shares the change's transaction."""
    drifting.run(
        "INSERT INTO items SELECT id, 'old' FROM generate_series(1, 500) AS id",
        *(f"UPDATE items SET name = 'new {n}' WHERE id = 500" for n in range(20)),
        "BEGIN; INSERT INTO moods VALUES (1, 'ok'); ALTER TABLE items ADD extra integer;"
        " INSERT INTO items VALUES (501, 'new', 1); COMMIT",
    )

    with drifting.stream() as stream:
        error = stream.failure()

    assert isinstance(error, DriftError)
    assert drifting.rows_of_ids("items") == list(range(1, 501))
    [(name,)] = drifting.execute(drifting.target, "SELECT name FROM public.items WHERE id = 500")
    assert name == "new 19"
    assert drifting.rows_of_ids("moods") == []
    assert drifting.record.position < (error.commit_lsn or 0)


def test_stream_refuses_rows_that_are_older_than_the_target(drifting: Any) -> None:
    drifting.run(
        "INSERT INTO items VALUES (1, 'a')", "ALTER TABLE items ADD extra integer DEFAULT 5"
    )
    drifting.execute(drifting.target, "ALTER TABLE public.items ADD extra integer DEFAULT 6")

    with drifting.stream() as stream:
        error = stream.failure()

    assert isinstance(error, DriftError)
    assert "must be copied again" in error.hint
    assert '"backfill"' in error.hint
    assert drifting.rows_of_ids("items") == []


@pytest.mark.parametrize("is_away", [False, True], ids=["running", "away"])
def test_stream_does_not_take_a_renamed_table_for_one_outside_the_move(
    drifting: Any, is_away: bool
) -> None:
    change = ("ALTER TABLE items RENAME TO things", "INSERT INTO things VALUES (3, 'c')")
    if is_away:
        drifting.run("INSERT INTO items VALUES (2, 'b')", *change)
    with drifting.stream() as stream:
        if not is_away:
            drifting.run("INSERT INTO items VALUES (2, 'b')")
            stream.catch_up()
            drifting.run(*change)
        error = stream.failure()

    assert isinstance(error, DriftError)
    assert "was renamed" in error.message
    assert '"public.items" of the source' in error.message or is_away
    assert '"preflight"' in error.hint
    assert drifting.rows_of_ids("items") == ([] if is_away else [2])


def test_stream_goes_on_when_the_source_undid_the_change_before_it_wrote(drifting: Any) -> None:
    with drifting.stream() as stream:
        drifting.run("INSERT INTO items VALUES (1, 'a')")
        stream.catch_up()
        drifting.run(
            "ALTER TABLE items ADD extra integer",
            "ALTER TABLE items DROP extra",
            "INSERT INTO items VALUES (2, 'b')",
        )
        stream.catch_up()

    assert drifting.rows("items") == drifting.source_rows("items") == ["(1,a)", "(2,b)"]
