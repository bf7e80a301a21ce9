"""
Write names and values into SQL text.

DDL can bind no parameters, and a plan is shown before there is a session that could quote for it.
Every name and value in the text of a plan goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_PART = re.compile(r'"((?:[^"]|"")+)"|([^."]+)')

# pg_get_keywords() of version 18, without those that are unreserved: what quote_ident() quotes.
_KEYWORD_TEXT = """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary
    bit boolean both case cast char character check coalesce collate collation column
    concurrently constraint create cross current_catalog current_date current_role
    current_schema current_time current_timestamp current_user dec decimal default
    deferrable desc distinct do else end except exists extract false fetch float for
    foreign freeze from full grant greatest group grouping having ilike in initially inner
    inout int integer intersect interval into is isnull join json json_array json_arrayagg
    json_exists json_object json_objectagg json_query json_scalar json_serialize json_table
    json_value lateral leading least left like limit localtime localtimestamp merge_action
    national natural nchar none normalize not notnull null nullif numeric offset on only or
    order out outer overlaps overlay placing position precision primary real references
    returning right row select session_user setof similar smallint some substring symmetric
    system_user table tablesample then time timestamp to trailing treat trim true union
    unique user using values varchar variadic verbose when where window with xmlattributes
    xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot
    xmlserialize xmltable
"""
_KEYWORDS = frozenset(_KEYWORD_TEXT.split())


def quote_name(*parts: str) -> str:
    """
    Quote a name, where it needs that, and put a schema before it.

    >>> quote_name("public", "Order")
    'public."Order"'
    """
    return ".".join(
        part
        if _PLAIN.fullmatch(part) and part not in _KEYWORDS
        else '"' + part.replace('"', '""') + '"'
        for part in parts
    )


def quote_names(names: Iterable[str]) -> str:
    """
    Quote a list of names.

    >>> quote_names(["id", "user"])
    'id, "user"'
    """
    return ", ".join(map(quote_name, names))


def quote_text(text: str) -> str:
    """
    Quote a text value, whatever ``standard_conforming_strings`` says.

    >>> quote_text("it's")
    "'it''s'"
    """
    quoted = "'" + text.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def split_name(text: str) -> tuple[str, ...]:
    """
    Take apart a qualified name as Postgres spells it.

    >>> split_name('public."My.seq"')
    ('public', 'My.seq')
    """
    return tuple(
        match[1].replace('""', '"') if match[1] else match[2] for match in _PART.finditer(text)
    )
