"""
The tenant's own sequences in the target: created at preparation, carried at the cutover, and back.

Invariant: a value that the one side handed out, or that a key of the tenant holds, is never handed
out by the other again. A sequence therefore only moves in the direction of its increment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from psycopg2 import sql
from psycopg2.extensions import connection

from tenantferry.errors import PermanentError
from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema import database
from tenantferry.schema.findings import Finding, error
from tenantferry.schema.isolation import SHARED_GROUP
from tenantferry.schema.reading import read_rows, read_schemas

_DEFINE = sql.SQL(
    "{verb} SEQUENCE {name} AS {type} INCREMENT {increment} MINVALUE {minimum}"
    " MAXVALUE {maximum} START {start} CACHE {cache} {cycle}"
)
_GRANT = sql.SQL("GRANT USAGE, SELECT, UPDATE ON SEQUENCE {name} TO {role}, {shared}")
_STATE = sql.SQL("SELECT {text}::text, last_value, is_called, {edge} FROM {name}")
_SET = sql.SQL("pg_catalog.setval({name}, {value}, {called})")
_UNSETTABLE = """
SELECT c.oid::pg_catalog.regclass::text
FROM unnest(%s::text[], %s::text[]) AS wanted (schema, name)
JOIN pg_catalog.pg_namespace AS n ON n.nspname = wanted.schema
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = wanted.name
-- The function fails for what is no sequence, and conditions have no order.
WHERE CASE WHEN c.relkind = 'S' THEN NOT pg_catalog.has_sequence_privilege(c.oid, 'UPDATE') END
"""
_TENANT_SCHEMA = "SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %s"


@dataclass(frozen=True, slots=True)
class SequenceState:
    """
    Where a sequence stands.

    :ivar is_called: whether *last_value* was handed out; else it is the next.
    :ivar key_edge: the farthest value, in the direction of the increment, that a key column
        fed by it holds.
    """

    last_value: int
    is_called: bool
    key_edge: int | None = None


@dataclass(frozen=True, slots=True)
class _FedColumn:
    sequence: tuple[str, str]
    table: tuple[str, str]
    column: str
    indexed: bool


def select_sequences(
    sequences: Iterable[database.Sequence],
    fed: Iterable[tuple[tuple[str, str], tuple[str, str]]],
    tenant: Tenant,
) -> tuple[database.Sequence, ...]:
    """
    Return the sequences that move: all but those that serve only tables that stay.

    :param fed: pairs of the qualified names of a sequence and of a table that reads it.
    """
    moving = {s for s, table in fed if tenant.kind_of(*table) is TableKind.TENANT}
    return tuple(
        s
        for s in sequences
        if (s.schema, s.name) in moving
        or s.feeds is None
        or tenant.kind_of(*s.feeds[:2]) is TableKind.TENANT
    )


def find_repeated_names(sequences: Iterable[database.Sequence]) -> tuple[str, ...]:
    """Return the bare names that more than one sequence has; one schema cannot hold both."""
    counts = Counter(s.name for s in sequences)
    return tuple(sorted(name for name, count in counts.items() if count > 1))


def check_sequences(source: connection, tenant: Tenant) -> Iterator[Finding]:
    """Find sequences that cannot lie in one schema together."""
    for name in find_repeated_names(_read_moving(source, tenant)):
        detail = f'Several sequences of this name move into the schema "{tenant.schema_name}".'
        yield error("sequence", name, detail, "Rename all but one of them on the source.")


def ensure_tenant_sequences(
    source: connection, target: connection, tenant: Tenant
) -> tuple[str, ...]:
    """
    Create or alter the tenant's sequences in its schema, as they are on the source.

    Their positions stay where they are until `carry_sequences`.

    :param source: open transaction or autocommit; only read.
    :param target: open transaction; the caller commits. The tenant's schema and role exist.
    :return: bare names of the tenant's sequences.
    :raises PermanentError: if two sequences have the same bare name.
    """
    wanted = _read_moving(source, tenant)
    if repeated := find_repeated_names(wanted):
        raise PermanentError(
            f'sequences of tenant "{tenant.key}" have the same name: {", ".join(repeated)}',
            detail=f'All of them move into the schema "{tenant.schema_name}".',
            hint="Rename one of each name on the source.",
        )
    present = {s.name: s for s in _read_present(target, tenant)}
    with target.cursor() as cursor:
        for sequence in wanted:
            name = sql.Identifier(tenant.schema_name, sequence.name)
            found = present.get(sequence.name)
            if found is None or _shape(found) != _shape(sequence):
                cursor.execute(define_sequence(sequence, name, create=found is None))
            cursor.execute(
                _GRANT.format(
                    name=name,
                    role=sql.Identifier(tenant.role),
                    shared=sql.Identifier(SHARED_GROUP),
                )
            )
    return tuple(s.name for s in wanted)


def define_sequence(
    sequence: database.Sequence, name: sql.Identifier, *, create: bool
) -> sql.Composed:
    """Build the statement that creates a sequence, or makes another one like it."""
    return _DEFINE.format(
        verb=sql.SQL("CREATE" if create else "ALTER"),
        name=name,
        type=sql.SQL(sequence.type_name),
        increment=sql.Literal(sequence.increment),
        minimum=sql.Literal(sequence.minimum),
        maximum=sql.Literal(sequence.maximum),
        start=sql.Literal(sequence.start),
        cache=sql.Literal(sequence.cache),
        cycle=sql.SQL("CYCLE" if sequence.cycle else "NO CYCLE"),
    )


def carry_sequences(source: connection, target: connection, tenant: Tenant) -> dict[str, int]:
    """
    Move the tenant's sequences in the target to where those of the source stand.

    Meant for the write pause: with nobody writing, what is read stays true. Values that a
    session of the source had cached are passed over.

    :param source: open transaction or autocommit; only read.
    :param target: open transaction or autocommit. Sequences do not roll back.
    :return: bare name to the value handed out next (of an exhausted sequence, its last).
    """
    found = _read_both(source, target, tenant)
    chosen = {
        (tenant.schema_name, s.name): choose_state(s, theirs, ours) for s, theirs, ours in found
    }
    _set_states(target, chosen)
    return {s.name: _next_value(s, chosen[tenant.schema_name, s.name]) for s, *_ in found}


def carry_sequences_back(source: connection, target: connection, tenant: Tenant) -> dict[str, int]:
    """
    Move the source's sequences to where those of the tenant in the target stand.

    Meant for the write pause of a rollback, when the source holds all of the tenant's rows again.

    :param source: session in autocommit. Sequences do not roll back.
    :param target: open transaction or autocommit; only read.
    :return: bare name to the value handed out next (of an exhausted sequence, its last).
    """
    found = _read_both(source, target, tenant)
    chosen = {
        # The keys are the same on both sides; only the source's index finds the greatest.
        (s.schema, s.name): choose_state(s, replace(ours, key_edge=theirs.key_edge), theirs)
        for s, theirs, ours in found
    }
    _set_states(source, chosen)
    return {s.name: _next_value(s, chosen[s.schema, s.name]) for s, *_ in found}


def check_sequences_can_go_back(source: connection, tenant: Tenant) -> None:
    """
    Check that we may set the source's sequences.

    :param source: open transaction or autocommit; only read.
    :raises PermanentError: if not.
    """
    wanted = _read_moving(source, tenant)
    with source.cursor() as cursor:
        cursor.execute(_UNSETTABLE, ([s.schema for s in wanted], [s.name for s in wanted]))
        refused = [name for (name,) in cursor.fetchall()]
    if refused:
        raise PermanentError(
            f'cannot set sequences of the source of tenant "{tenant.key}"',
            detail=f"Our role has no right to UPDATE {', '.join(refused)}.",
            hint="GRANT UPDATE ON SEQUENCE ... TO our role, or make it a member of their owner.",
        )


def choose_state(
    sequence: database.Sequence, source: SequenceState, target: SequenceState
) -> SequenceState:
    """
    Return where a sequence of the target has to stand to go on after that of the source.

    On the way back the two change places.

    >>> s = database.Sequence("public", "s", "bigint", 1, 10, 1, 1000, 1, False)
    >>> choose_state(s, SequenceState(31, True, 45), SequenceState(1, False))
    SequenceState(last_value=51, is_called=False, key_edge=None)
    """
    if sequence.cycle:
        # It repeats its values by design, so "forward" means nothing.
        return SequenceState(source.last_value, source.is_called)
    forward = max if sequence.increment > 0 else min
    wanted = forward(_next_value(sequence, source), _next_value(sequence, target))
    if source.key_edge is not None:
        beyond = _step_beyond(sequence, wanted, source.key_edge)
        # A key outside of the sequence's bounds was never one of its values: a marker row of
        # the application. Following it would exhaust the sequence.
        if sequence.minimum <= beyond <= sequence.maximum:
            wanted = forward(wanted, beyond)
    if sequence.minimum <= wanted <= sequence.maximum:
        return SequenceState(wanted, is_called=False)
    edge = sequence.maximum if sequence.increment > 0 else sequence.minimum
    return SequenceState(edge, is_called=True)


def _next_value(sequence: database.Sequence, state: SequenceState) -> int:
    return state.last_value + (sequence.increment if state.is_called else 0)


def _step_beyond(sequence: database.Sequence, start: int, edge: int) -> int:
    """Return the first value behind *edge* among *start*, *start* + increment, and so on."""
    passed = (edge - start) // sequence.increment
    return start + (max(passed, -1) + 1) * sequence.increment


def _edge(sequence: database.Sequence, columns: Sequence[_FedColumn]) -> sql.Composable:
    """Build the expression for the farthest key that the sequence feeds."""
    edges = [
        sql.SQL("(SELECT {function}({column})::bigint FROM {table})").format(
            function=sql.SQL("max" if sequence.increment > 0 else "min"),
            column=sql.Identifier(fed.column),
            table=sql.Identifier(*fed.table),
        )
        for fed in columns
        # Without an index it would be a scan of the whole table, in the write pause.
        if fed.indexed and fed.sequence == (sequence.schema, sequence.name)
    ]
    if not edges:
        return sql.SQL("NULL::bigint")
    function = sql.SQL("GREATEST" if sequence.increment > 0 else "LEAST")
    return sql.SQL("{}({})").format(function, sql.SQL(", ").join(edges))


def _read_moving(
    source: connection, tenant: Tenant, columns: Sequence[_FedColumn] | None = None
) -> tuple[database.Sequence, ...]:
    fed = _read_fed_columns(source, tenant) if columns is None else columns
    oids = {"schemas": list(read_schemas(source, None))}
    sequences = map(database.build_sequence, read_rows(source, "sequences", oids))
    return select_sequences(sequences, ((f.sequence, f.table) for f in fed), tenant)


def _read_fed_columns(source: connection, tenant: Tenant) -> list[_FedColumn]:
    return [
        _FedColumn((row[0], row[1]), (row[2], row[3]), row[4], row[5])
        for row in read_rows(source, "sequence_columns", None)
        if tenant.kind_of(row[2], row[3]) is TableKind.TENANT
    ]


def _read_present(target: connection, tenant: Tenant) -> list[database.Sequence]:
    with target.cursor() as cursor:
        cursor.execute(_TENANT_SCHEMA, (tenant.schema_name,))
        oids = [oid for (oid,) in cursor.fetchall()]
    return list(map(database.build_sequence, read_rows(target, "sequences", {"schemas": oids})))


def _read_both(
    source: connection, target: connection, tenant: Tenant
) -> list[tuple[database.Sequence, SequenceState, SequenceState]]:
    """Return the sequences that both sides have, with their states on the source and the target."""
    present = {s.name for s in _read_present(target, tenant)}
    columns = _read_fed_columns(source, tenant)
    both = [s for s in _read_moving(source, tenant, columns) if s.name in present]
    theirs = _read_states(source, [(s.name, (s.schema, s.name), _edge(s, columns)) for s in both])
    no_edge = sql.SQL("NULL::bigint")
    ours = _read_states(target, [(s.name, (tenant.schema_name, s.name), no_edge) for s in both])
    return [(s, theirs[s.name], ours[s.name]) for s in both]


def _read_states(
    conn: connection, wanted: Sequence[tuple[str, tuple[str, str], sql.Composable]]
) -> dict[str, SequenceState]:
    """Read all positions in one statement; the parts are a label, a sequence and its edge."""
    if not wanted:
        return {}
    parts = [
        _STATE.format(text=sql.Literal(label), edge=edge, name=sql.Identifier(*qualified))
        for label, qualified, edge in wanted
    ]
    with conn.cursor() as cursor:
        cursor.execute(sql.SQL(" UNION ALL ").join(parts))
        return {label: SequenceState(*rest) for label, *rest in cursor.fetchall()}


def _set_states(conn: connection, states: dict[tuple[str, str], SequenceState]) -> None:
    if not states:
        return
    parts = [
        _SET.format(
            # setval() takes the name as text.
            name=sql.Literal(sql.Identifier(*qualified).as_string(conn)),
            value=sql.Literal(state.last_value),
            called=sql.Literal(state.is_called),
        )
        for qualified, state in states.items()
    ]
    with conn.cursor() as cursor:
        # A select list holds at most 1,664 columns, a row of VALUES as many: one row each.
        cursor.execute(
            sql.SQL("VALUES {}").format(
                sql.SQL(", ").join(sql.SQL("({})").format(part) for part in parts)
            )
        )


def _shape(sequence: database.Sequence) -> tuple[object, ...]:
    return (
        sequence.type_name,
        sequence.start,
        sequence.increment,
        sequence.minimum,
        sequence.maximum,
        sequence.cache,
        sequence.cycle,
    )
