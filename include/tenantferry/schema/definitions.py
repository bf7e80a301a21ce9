"""Write types, functions and views as the SQL that makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tenantferry.schema.database import Composite, Domain, Enum, Extension, Range, View
from tenantferry.schema.isolation import APP_GROUP
from tenantferry.schema.quoting import quote_name, quote_text

_VIEW_PRIVILEGES = ("DELETE", "INSERT", "SELECT", "UPDATE")
INVOKER = "security_invoker=true"


def render_schema(name: str) -> str:
    """Write ``CREATE SCHEMA``."""
    return f"CREATE SCHEMA {quote_name(name)}"


def render_schema_usage(name: str) -> str:
    """Write the grant that lets the application look into a schema."""
    return f"GRANT USAGE ON SCHEMA {quote_name(name)} TO {APP_GROUP}"


def render_extension(extension: Extension) -> str:
    """Write ``CREATE EXTENSION``, of the version that the target has."""
    return f"CREATE EXTENSION {quote_name(extension.name)} SCHEMA {quote_name(extension.schema)}"


def render_enum(enum: Enum) -> Iterator[str]:
    """Write an enumerated type with its labels in order."""
    labels = ", ".join(map(quote_text, enum.labels))
    yield f"CREATE TYPE {quote_name(enum.schema, enum.name)} AS ENUM ({labels})"
    yield from _render_comment("TYPE", enum)


def render_domain(domain: Domain) -> Iterator[str]:
    """Write a domain with its checks."""
    parts = [f"CREATE DOMAIN {quote_name(domain.schema, domain.name)} AS {domain.type_name}"]
    if domain.collation:
        parts.append(f"COLLATE {domain.collation}")
    if domain.default is not None:
        parts.append(f"DEFAULT {domain.default}")
    if domain.not_null:
        parts.append("NOT NULL")
    parts += [f"CONSTRAINT {quote_name(c.name)} {c.definition}" for c in domain.checks]
    yield " ".join(parts)
    yield from _render_comment("DOMAIN", domain)


def render_composite(composite: Composite) -> Iterator[str]:
    """Write a composite type."""
    attributes = ", ".join(f"{quote_name(name)} {kind}" for name, kind in composite.attributes)
    yield f"CREATE TYPE {quote_name(composite.schema, composite.name)} AS ({attributes})"
    yield from _render_comment("TYPE", composite)


def render_range(range_type: Range) -> Iterator[str]:
    """Write a range type, with the name of its multirange type."""
    parts = [
        f"SUBTYPE = {range_type.subtype}",
        f"SUBTYPE_OPCLASS = {range_type.operator_class}",
        f"MULTIRANGE_TYPE_NAME = {quote_name(*range_type.multirange)}",
    ]
    if range_type.collation:
        parts.append(f"COLLATION = {range_type.collation}")
    if range_type.difference:
        parts.append(f"SUBTYPE_DIFF = {range_type.difference}")
    name = quote_name(range_type.schema, range_type.name)
    yield f"CREATE TYPE {name} AS RANGE ({', '.join(parts)})"
    yield from _render_comment("TYPE", range_type)


def render_view(view: View) -> Iterator[str]:
    """Write a view that reads with the rights of who asks, so that row security holds."""
    name = quote_name(view.schema, view.name)
    options = ", ".join(expected_options(view))
    yield f"CREATE VIEW {name} WITH ({options}) AS\n{view.definition.rstrip().rstrip(';')}"
    yield from _render_comment("VIEW", view)


def render_view_privileges(view: View, granted: Sequence[str]) -> Iterator[str]:
    """Write the grant of what the application may not do yet."""
    if missing := [privilege for privilege in _VIEW_PRIVILEGES if privilege not in granted]:
        yield f"GRANT {', '.join(missing)} ON {quote_name(view.schema, view.name)} TO {APP_GROUP}"


def expected_options(view: View) -> tuple[str, ...]:
    """Return the options of a view in the target."""
    kept = (o for o in view.options if not o.startswith("security_invoker="))
    return (INVOKER, *kept)


def _render_comment(kind: str, thing: Enum | Domain | Composite | Range | View) -> Iterator[str]:
    if thing.comment is not None:
        name = quote_name(thing.schema, thing.name)
        yield f"COMMENT ON {kind} {name} IS {quote_text(thing.comment)}"
