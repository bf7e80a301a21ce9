from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tenantferry.errors import PermanentError
from tenantferry.local.auditor import audit
from tenantferry.local.generic_workload import read_foreign_tables
from tenantferry.local.journal import read_journal
from tenantferry.local.loading import adopt_objects, find_roles, load_dump

if TYPE_CHECKING:
    from tests.local.conftest import Application

# As pg_dump 18 writes it, with a role that this server does not know.
DUMP = r"""
\restrict vJ9m
SET statement_timeout = 0;
SET transaction_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);
CREATE SCHEMA library;
ALTER SCHEMA library OWNER TO "Head Librarian";
CREATE TYPE library.genre AS ENUM ('novel', 'poem');
ALTER TYPE library.genre OWNER TO "Head Librarian";
CREATE DOMAIN library.isbn AS text CHECK (VALUE <> '');
CREATE FUNCTION library.refuse_zero() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'stock is counted elsewhere';
END
$$;
CREATE TABLE library.authors (
    country character(2) NOT NULL,
    number integer NOT NULL,
    name character varying(6),
    born date,
    PRIMARY KEY (country, number)
);
ALTER TABLE library.authors OWNER TO "Head Librarian";
CREATE TABLE library.books (
    id uuid PRIMARY KEY,
    isbn library.isbn UNIQUE,
    slug text,
    country character(2),
    author integer,
    genre library.genre DEFAULT 'novel',
    price numeric(5,2) CHECK (price >= 0),
    weight numeric(4,1),
    is_lent boolean,
    notes jsonb,
    pages bigint,
    pages_twice bigint GENERATED ALWAYS AS (pages * 2) STORED,
    stock integer,
    scan bytea,
    FOREIGN KEY (country, author) REFERENCES library.authors
);
CREATE UNIQUE INDEX books_slug_key ON library.books (lower(slug)) WHERE pages > 0;
CREATE TRIGGER books_stock BEFORE UPDATE OF stock ON library.books
    FOR EACH ROW EXECUTE FUNCTION library.refuse_zero();
CREATE TABLE library.log (line text);
COPY library.authors (country, number, name, born) FROM stdin;
de	1	Kafka	1883-07-03
fr	1	GRANT x TO y;	\N
\.
"""
DUMP = DUMP.replace("GRANT x TO y;", "Proust") + (
    "INSERT INTO library.books (id, isbn, slug, country, author, price, pages)"
    " SELECT gen_random_uuid(), 'i' || n, 's' || n, 'de', 1, n % 100, n"
    " FROM generate_series(1, 50) AS n;\n"
    "GRANT SELECT ON TABLE library.books TO readers;\n"
    "\\unrestrict vJ9m\n"
)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump.sql"
    path.write_text(DUMP, "utf-8")
    return path


@pytest.fixture
def library(empty_shop: Application, dump: Path) -> Application:
    load_dump(empty_shop.server, empty_shop.database, dump)
    adopt_objects(empty_shop.server, empty_shop.database, owner="shop_owner", app="shop_app")
    return empty_shop


def test_find_roles_reads_statements_and_not_data(tmp_path: Path) -> None:
    path = tmp_path / "dump.sql"
    path.write_text(
        "ALTER TABLE a OWNER TO plain;\n"
        'ALTER TABLE b OWNER TO "Quo""ted";\n'
        "GRANT SELECT ON TABLE a TO reader;\n"
        "GRANT SELECT ON TABLE a TO PUBLIC;\n"
        "ALTER DEFAULT PRIVILEGES FOR ROLE maker GRANT SELECT ON TABLES TO taker;\n"
        "COPY a (x) FROM stdin;\n"
        "ALTER TABLE c OWNER TO nobody_at_all;\n"
        "\\.\n"
        "REVOKE ALL ON TABLE a FROM former;\n",
        "utf-8",
    )

    assert find_roles(path) == {"plain", 'Quo"ted', "reader", "maker", "taker", "former"}


def test_adopt_objects_gives_everything_to_the_owner(library: Application) -> None:
    strangers = library.server.psql(
        "-c",
        "SELECT c.oid::regclass FROM pg_class AS c WHERE relnamespace = 'library'::regnamespace"
        " AND relkind IN ('r', 'S', 'v') AND relowner <> 'shop_owner'::regrole",
        "-c",
        "SELECT typname FROM pg_type WHERE typnamespace = 'library'::regnamespace"
        " AND typtype IN ('e', 'd') AND typowner <> 'shop_owner'::regrole",
        "-c",
        "SELECT proname FROM pg_proc WHERE pronamespace = 'library'::regnamespace"
        " AND proowner <> 'shop_owner'::regrole",
        "-c",
        "SELECT nspname FROM pg_namespace WHERE nspname IN ('library', 'public')"
        " AND nspowner <> 'shop_owner'::regrole",
        database=library.database,
    )

    assert strangers == ""


def test_generic_client_updates_a_foreign_schema_and_the_audit_is_green(
    library: Application,
) -> None:
    summary = library.run_client(acknowledged_writes=200, generic=True)

    with closing(library.connect()) as reader:
        result = audit(reader, library.journal)
    assert summary.failures == ()
    assert summary.note == ""
    assert result.lost_writes == 0
    assert result.acknowledged_writes == summary.acknowledged_writes >= 200


def test_audit_of_a_generic_client_fails_when_a_value_is_changed(library: Application) -> None:
    library.run_client(acknowledged_writes=50, generic=True)
    first = next(
        write
        for entry in read_journal(library.journal)
        for write in entry.writes
        if write.table == "books" and "weight" in write.values
    )

    library.execute("UPDATE library.books SET weight = 0.5 WHERE id = %s", first.key["id"])

    with closing(library.connect()) as reader:
        assert audit(reader, library.journal).lost_writes == 1


def test_generic_client_leaves_columns_alone_whose_meaning_it_cannot_know(
    library: Application,
) -> None:
    with closing(library.connect()) as opened:
        tables = read_foreign_tables(opened, chance=random.Random(1))

    columns = {t.name: {column.name for column in t.columns} for t in tables}
    # Not: keys, foreign keys, checks, unique indexes with expression and predicate, domains,
    # enums, generated columns, bytea, and the column whose trigger refuses.
    assert columns == {"authors": {"name", "born"}, "books": {"weight", "is_lent", "notes"}}


def test_generic_client_only_reads_and_says_so_when_nothing_can_be_updated(
    empty_shop: Application,
) -> None:
    empty_shop.execute(
        "CREATE TABLE pairs (a integer, b integer, PRIMARY KEY (a, b));"
        "INSERT INTO pairs VALUES (1, 2); GRANT ALL ON pairs TO shop_app"
    )

    summary = empty_shop.run_client(acknowledged_writes=0, generic=True)

    assert "only reads" in summary.note
    assert summary.failed == 0


def test_load_dump_shows_the_error_of_psql_when_a_statement_fails(
    empty_shop: Application, tmp_path: Path
) -> None:
    path = tmp_path / "broken.sql"
    path.write_text("CREATE TABLE a (id integer);\nCREATE TABLE a (id integer);\n", "utf-8")

    with pytest.raises(PermanentError, match=r"broken\.sql") as caught:
        load_dump(empty_shop.server, empty_shop.database, path)

    assert 'relation "a" already exists' in caught.value.detail
    assert ":2: ERROR" in caught.value.detail


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"PGDMP\x01\x0e\x00", "not plain SQL", id="custom format"),
        pytest.param(b"SELECT 1;\n", "made no table", id="no table"),
    ],
)
def test_load_dump_refuses_what_is_no_dump_of_a_database(
    empty_shop: Application, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(content)

    with pytest.raises(PermanentError, match=message):
        load_dump(empty_shop.server, empty_shop.database, path)
