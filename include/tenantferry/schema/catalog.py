"""Read the schema of a database from ``pg_catalog``: one query for each kind of object."""

from __future__ import annotations

from collections.abc import Collection

from psycopg2.extensions import connection

from tenantferry.fleet import TableKind, Tenant
from tenantferry.schema.database import (
    Catalog,
    Composite,
    Domain,
    Enum,
    Extension,
    Function,
    Partition,
    Range,
    Uncarried,
    UncarriedKind,
    View,
    build_sequence,
)
from tenantferry.schema.model import Check, Table
from tenantferry.schema.reading import Row, read_rows, read_schemas
from tenantferry.schema.tables import read_ordinary_tables


def read_tables(conn: connection, tenant: Tenant) -> tuple[Table, ...]:
    """
    Return the tables of a source that move with the tenant, the largest first.

    :param conn: session with the source; only read.
    """
    tables = read_ordinary_tables(conn, list(read_schemas(conn, None)))
    moving = (t for t in tables if tenant.kind_of(t.schema, t.name) is TableKind.TENANT)
    return tuple(sorted(moving, key=lambda table: (-table.bytes, table.qualified)))


def read_catalog(conn: connection, *, schemas: Collection[str] | None = None) -> Catalog:
    """
    Return the schema of a database, without what is Postgres', an extension's or ours.

    :param conn: one transaction, for one instant; only read.
    :param schemas: names of the schemas to read; by default all of the application.
    """
    found = read_schemas(conn, schemas)
    oids = {"schemas": list(found)}
    return Catalog(
        version=conn.server_version,
        schemas=tuple(schema.name for schema in found.values()),
        usable_schemas=frozenset(schema.name for schema in found.values() if schema.usable),
        extensions=tuple(Extension(*row) for row in read_rows(conn, "extensions", None)),
        enums=tuple(Enum(s, n, tuple(ls), c) for s, n, ls, c in read_rows(conn, "enums", oids)),
        domains=tuple(map(_build_domain, read_rows(conn, "domains", oids))),
        composites=tuple(map(_build_composite, read_rows(conn, "composites", oids))),
        ranges=tuple(map(_build_range, read_rows(conn, "ranges", oids))),
        sequences=tuple(map(build_sequence, read_rows(conn, "sequences", oids))),
        functions=tuple(Function(*row) for row in read_rows(conn, "functions", oids)),
        tables=read_ordinary_tables(conn, oids["schemas"]),
        views=sort_views(list(map(_build_view, read_rows(conn, "views", oids)))),
        uncarried=tuple(
            Uncarried(UncarriedKind(kind), *rest)
            for kind, *rest in read_rows(conn, "uncarried", oids)
        ),
        partitions=tuple(map(_build_partition, read_rows(conn, "partitions", oids))),
        collations=frozenset(name for (name,) in read_rows(conn, "collations", None)),
        type_order=tuple((s, n) for s, n in read_rows(conn, "type_order", oids)),
    )


def sort_views(views: list[View]) -> tuple[View, ...]:
    """Put each view behind the views that it reads."""
    waiting = {(view.schema, view.name): view for view in views}
    done: list[View] = []
    while waiting:
        ready = [view for view in waiting.values() if not waiting.keys() & set(view.views)]
        # Postgres refuses a view that reads itself, so some view is always ready.
        for view in ready:
            del waiting[view.schema, view.name]
        done += ready
    return tuple(done)


def _build_domain(row: Row) -> Domain:
    schema, name, type_name, not_null, default, collation, names, definitions, comment = row
    return Domain(
        schema=schema,
        name=name,
        type_name=type_name,
        not_null=not_null,
        default=default,
        collation=collation,
        checks=tuple(map(Check, names or (), definitions or ())),
        comment=comment,
    )


def _build_partition(row: Row) -> Partition:
    root_schema, root, schema, name, kind, persistence, identity, key, own, otherwise = row
    return Partition(
        root=(root_schema, root),
        schema=schema,
        name=name,
        kind=kind,
        persistence=persistence,
        replica_identity=identity,
        key=tuple(key),
        own=tuple(own),
        generated_otherwise=tuple(otherwise),
    )


def _build_composite(row: Row) -> Composite:
    schema, name, names, types, comment = row
    return Composite(schema, name, tuple(zip(names or (), types or (), strict=True)), comment)


def _build_range(row: Row) -> Range:
    schema, name, subtype, operator_class, collation, difference, *multirange, comment = row
    return Range(
        schema=schema,
        name=name,
        subtype=subtype,
        operator_class=operator_class,
        collation=collation,
        difference=difference,
        multirange=(multirange[0], multirange[1]),
        comment=comment,
    )


def _build_view(row: Row) -> View:
    schema, name, definition, options, reads, needs_key, comment, granted = row
    return View(
        schema=schema,
        name=name,
        definition=definition,
        options=tuple(options or ()),
        views=tuple((s, n) for kind, s, n in reads or () if kind == "v"),
        tables=tuple((s, n) for kind, s, n in reads or () if kind != "v"),
        needs_key=needs_key,
        comment=comment,
        granted=tuple(granted),
    )
