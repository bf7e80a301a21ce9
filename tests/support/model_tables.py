"""The shapes of tables that the model draws from, with the keys and values of their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

NULL = "NULL"
# So many of the first and of the last keys of a table are free at the beginning.
FREE = 2
# Kept out of line and so not sent while it does not change, like its neighbours.
LARGE = tuple(f"repeat(md5('{n}'), 100)" for n in range(3))
_BIG = (*LARGE, *LARGE, "'short'", NULL)
_TEXTS = ("'a'", "'b'", "''", "'it''s 100%'", NULL)
# Types of the columns that a case adds, each with values. The first one can be its default.
TYPES = {
    "integer": ("0", "7", "-2147483648"),
    "bigint": ("0", "-1", "9223372036854775807"),
    "numeric": ("1.0", "1.00", "'NaN'"),
    "text": ("''", r"E'a\tb\\N'", *LARGE),
    "timestamptz": ("'2024-02-29 12:00+02'", "'infinity'", "'0044-03-15 BC'"),
    "uuid": ("'00000000-0000-4000-8000-000000000000'", "'ffffffff-ffff-4fff-bfff-ffffffffffff'"),
    "bytea": (r"'\x'", r"'\x005cff'", "decode(repeat('5c00ff', 1000), 'hex')"),
    "jsonb": ("'{}'", """'{"a": [1.0, null]}'""", "'null'"),
    "boolean": ("false", "true"),
    "text[]": ("'{}'", "'{a,NULL,\"b c\"}'", "'{{a},{b}}'"),
}
_OUT_OF_LINE = ("text", "bytea")


@dataclass(frozen=True, slots=True)
class Shape:
    """
    One table.

    :ivar ddl: statements of the source, one per line of a script.
    :ivar key: columns that a statement finds rows by. They need not be a key.
    :ivar keys: values of these columns, as SQL, in the order of the chunks.
    :ivar values: of each other column, as SQL.
    :ivar freed: for a column whose values swap: an expression of ``r`` that nobody else has ...
    :ivar taken: ... and the one of ``o`` that makes a freed value what it was.
    """

    name: str
    ddl: tuple[str, ...]
    key: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    values: dict[str, tuple[str, ...]]
    freed: dict[str, str] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)

    def where(self, key: tuple[str, ...], alias: str = "") -> str:
        """Return the condition that a row has a key."""
        prefix = f"{alias}." if alias else ""
        names = ", ".join(f"{prefix}{name}" for name in self.key)
        return f"({names}) = ({', '.join(key)})"


@dataclass(frozen=True, slots=True)
class Extra:
    """
    A column that a case adds to a table.

    :ivar type_name: one of `TYPES`.
    :ivar has_default: whether it has a default.
    """

    type_name: str
    is_nullable: bool
    has_default: bool

    @property
    def values(self) -> tuple[str, ...]:
        """What it may be given, as SQL."""
        others = [*([NULL] if self.is_nullable else []), *(["DEFAULT"] if self.has_default else [])]
        return (*TYPES[self.type_name], *others)

    def ddl(self, table: str, name: str) -> tuple[str, ...]:
        """Return the statements that add it."""
        null = "" if self.is_nullable else " NOT NULL"
        default = f" DEFAULT {TYPES[self.type_name][0]}" if self.has_default else ""
        add = f"ALTER TABLE {table} ADD {name} {self.type_name}{null}{default};"
        if self.type_name not in _OUT_OF_LINE:
            return (add,)
        return add, f"ALTER TABLE {table} ALTER {name} SET STORAGE EXTERNAL;"


def widen(shape: Shape, extras: Iterable[Extra]) -> Shape:
    """Return a shape with further columns."""
    ddl, values = shape.ddl, dict(shape.values)
    for number, extra in enumerate(extras, start=1):
        name = f"extra_{number}"
        ddl += extra.ddl(shape.name, name)
        values[name] = extra.values
    return replace(shape, ddl=ddl, values=values)


def _integers(count: int) -> tuple[tuple[str, ...], ...]:
    return tuple((str(n),) for n in range(-2, count - 2))


ACCOUNTS = Shape(
    "accounts",
    (
        "CREATE TABLE accounts (id integer PRIMARY KEY, name text, email text UNIQUE, big text);",
        "ALTER TABLE accounts ALTER big SET STORAGE EXTERNAL;",
    ),
    ("id",),
    _integers(16),
    {"name": _TEXTS, "email": (*(f"'e{n}'" for n in range(8)), NULL), "big": _BIG},
    freed={"email": "'x' || r.email"},
    taken={"email": "substr(o.email, 2)"},
)
INVOICES = Shape(
    "invoices",
    (
        "CREATE TABLE invoices (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
        " amount numeric, twice numeric GENERATED ALWAYS AS (amount * 2) STORED, note text);",
        "ALTER TABLE invoices ALTER note SET STORAGE EXTERNAL;",
    ),
    ("id",),
    _integers(14),
    {"amount": ("1.0", "1.00", "'NaN'", "-0.5", "1e30", NULL), "note": _BIG},
)
THINGS = Shape(
    "things",
    (
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad');",
        "CREATE TABLE things (id uuid PRIMARY KEY, mood mood, data jsonb, tags text[],"
        " moods mood[]);",
        "ALTER TABLE things ALTER data SET STORAGE EXTERNAL;",
    ),
    ("id",),
    tuple((f"'{n:x}0000000-0000-4000-8000-00000000000{n:x}'",) for n in range(12)),
    {
        "mood": ("'sad'", "'ok'", "'glad'", NULL),
        "data": (*(f"to_jsonb({large})" for large in LARGE), """'{"a": [1.0, null]}'""", NULL),
        "tags": ("'{}'", "'{a,NULL,\"b c\"}'", NULL),
        "moods": ("'{sad,glad}'", NULL),
    },
)
WORDS = Shape(
    "words",
    (
        "CREATE TABLE words (code text PRIMARY KEY, place integer, big text,"
        " UNIQUE (place) DEFERRABLE INITIALLY DEFERRED);",
        "ALTER TABLE words ALTER big SET STORAGE EXTERNAL;",
    ),
    ("code",),
    tuple((f"'{text}'",) for text in ("%", "(,", "10", "9", *"AB_abz", "it''s", "{}", "é", "ü")),
    {"place": (*map(str, range(1, 9)), NULL), "big": _BIG},
    freed={"place": "-r.place"},
    taken={"place": "-o.place"},
)
SEATS = Shape(
    "seats",
    (
        "CREATE TABLE seats (hall integer, seat text, rank integer, live boolean, big text,"
        " PRIMARY KEY (hall, seat));",
        "CREATE UNIQUE INDEX seats_rank ON seats (rank) WHERE live;",
        "ALTER TABLE seats ALTER big SET STORAGE EXTERNAL;",
    ),
    ("hall", "seat"),
    tuple((str(hall), f"'{seat}'") for hall in (1, 2, 10) for seat in ("a", "B", "c", "é")),
    {"rank": (*map(str, range(1, 6)), NULL), "live": ("true", "false", NULL), "big": _BIG},
    freed={"rank": "-r.rank"},
    taken={"rank": "-o.rank"},
)
EVENTS = Shape(
    "events",
    (
        "CREATE TABLE events (kind integer, at timestamptz, big text);",
        "ALTER TABLE events REPLICA IDENTITY FULL;",
        "ALTER TABLE events ALTER big SET STORAGE EXTERNAL;",
    ),
    ("kind",),
    _integers(7),
    {"at": ("'infinity'", "'2024-02-29 12:00+02'", "'0044-03-15 BC'", NULL), "big": _BIG},
)
LABELS = Shape(
    "labels",
    (
        "CREATE TABLE labels (code bigint NOT NULL, name text, big text);",
        "CREATE UNIQUE INDEX labels_code ON labels (code);",
        "ALTER TABLE labels REPLICA IDENTITY USING INDEX labels_code;",
        "ALTER TABLE labels ALTER big SET STORAGE EXTERNAL;",
    ),
    ("code",),
    _integers(12),
    {"name": _TEXTS, "big": _BIG},
)
PAGES = Shape(
    "pages",
    (
        "CREATE TABLE pages (id integer PRIMARY KEY, slug text UNIQUE, big text);",
        "ALTER TABLE pages REPLICA IDENTITY FULL;",
        "ALTER TABLE pages ALTER big SET STORAGE EXTERNAL;",
    ),
    ("id",),
    _integers(12),
    {"slug": (*(f"'s{n}'" for n in range(6)), NULL), "big": _BIG},
    freed={"slug": "'x' || r.slug"},
    taken={"slug": "substr(o.slug, 2)"},
)
RANKS = Shape(
    "ranks",
    (
        "CREATE TABLE ranks (id integer PRIMARY KEY DEFERRABLE, name text);",
        "ALTER TABLE ranks REPLICA IDENTITY FULL;",
    ),
    ("id",),
    _integers(12),
    {"name": _TEXTS},
    freed={"id": "100 + r.id"},
    taken={"id": "o.id - 100"},
)
SHAPES = (ACCOUNTS, INVOICES, THINGS, WORDS, SEATS, EVENTS, LABELS, PAGES, RANKS)
