"""
The file of aliases that a PgBouncer instance includes: one line per tenant.

Other lines may be managed by others, so an edit replaces one line and nothing else. The former
line stays above it as a comment with the number of the attempt, and that attempt alone may put it
back. A cutover's comment stays for as long as the tenant may be rolled back: nowhere else stands
what its alias was, and with which password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from tenantferry.errors import PermanentError
from tenantferry.traffic.alias_file import edit_lines, read_lines

# A name, or a name in double quotes, and what PgBouncer is told about it.
_LINE = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\s"=;#\[%][^\s=]*))\s*=\s*(.*?)\s*')
_PARAMETER = re.compile(r"\s*([a-z_]+)\s*=\s*(?:'((?:[^']|'')*)'|([^'\s]*))(?=\s|$)")
_BARE_NAME = re.compile(r"[0-9A-Za-z_]+")
_BARE_VALUE = re.compile(r"[0-9A-Za-z_.:/\-]+")
_FORMER = re.compile(r"; before \S+ tenantferry (\d+): (.*)")
# What says where an alias points, and as whom.
_SERVER = ("host", "port", "dbname", "user", "password")


def parse_entry(text: str) -> dict[str, str]:
    """
    Read what stands behind the ``=`` of an alias.

    :raises PermanentError: if PgBouncer could not read it either.

    >>> parse_entry("host=db1 port=5432 dbname='it''s'")
    {'host': 'db1', 'port': '5432', 'dbname': "it's"}
    """
    entry: dict[str, str] = {}
    position, text = 0, text.strip()
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            # The rest may hold a password.
            raise PermanentError(f"alias is malformed at character {position + 1}")
        quoted, bare = match[2], match[3]
        entry[match[1]] = bare if quoted is None else quoted.replace("''", "'")
        position = match.end()
    return entry


def format_entry(entry: Mapping[str, str]) -> str:
    """
    Write what stands behind the ``=`` of an alias.

    :raises PermanentError: if a value holds a line break, which PgBouncer cannot read.

    >>> format_entry({"host": "db1", "dbname": "it's"})
    "host=db1 dbname='it''s'"
    """
    return " ".join(f"{name}={_quote_value(name, value)}" for name, value in entry.items())


def read_entry(path: Path, alias: str) -> dict[str, str]:
    """
    Return the parameters of one alias.

    :raises PermanentError: if the file does not hold it.
    """
    lines = read_lines(path)
    return parse_entry(_split(lines[_find(lines, alias, path)])[1])


def replace_entry(path: Path, alias: str, entry: Mapping[str, str], *, attempt: int) -> None:
    """
    Point an alias elsewhere and keep the former line for `restore_entry`.

    Doing it again changes nothing.

    :param attempt: number of the cutover attempt, from the control schema.
    """

    def edit(lines: list[str]) -> list[str]:
        index = _find(lines, alias, path)
        line = f"{_quote_name(alias)} = {format_entry(entry)}"
        if lines[index] == line:
            return lines
        start = index
        # A rollback may have left two.
        while _former_above(lines, start, alias) is not None:
            start -= 1
        return [*lines[:start], _remember(lines[index], attempt), line, *lines[index + 1 :]]

    edit_lines(path, edit)


def read_former_entry(path: Path, alias: str, *, attempt: int) -> dict[str, str]:
    """
    Return the parameters that an alias had before *attempt* replaced them.

    :raises PermanentError: if the file does not tell.
    """
    return parse_entry(_split(_find_former(read_lines(path), alias, attempt, path))[1])


def return_entry(path: Path, alias: str, *, former: int, attempt: int) -> dict[str, str]:
    """
    Point an alias where it pointed before attempt *former*.

    The present line is kept for `restore_entry`. What else was changed in the line since then
    stays. Doing it again changes nothing.

    :param former: number of the cutover.
    :param attempt: number of the rollback.
    :return: the parameters of the alias.
    :raises PermanentError: if the file does not tell what the alias was.
    """
    returned: dict[str, str] = {}

    def edit(lines: list[str]) -> list[str]:
        nonlocal returned
        index = _find(lines, alias, path)
        line = lines[index]
        above = _former_above(lines, index, alias)
        if above is None or above[0] != attempt:
            line = _merge(_find_former(lines, alias, former, path), lines[index])
            # Below the comment of the cutover, which a later rollback needs if this one is undone.
            lines = [*lines[:index], _remember(lines[index], attempt), line, *lines[index + 1 :]]
        returned = parse_entry(_split(line)[1])
        return lines

    edit_lines(path, edit)
    return returned


def forget_former(path: Path, alias: str) -> None:
    """Remove what is remembered of an alias; where nothing is, nothing changes."""
    edit_lines(
        path,
        lambda lines: [
            line
            for line in lines
            if (match := _FORMER.fullmatch(line)) is None or _split(match[2])[0] != alias
        ],
    )


def restore_entry(path: Path, alias: str, *, attempt: int) -> bool:
    """
    Put back the line that *attempt* replaced.

    :return: whether there was anything to put back.
    """
    restored = False

    def edit(lines: list[str]) -> list[str]:
        nonlocal restored
        index = _find(lines, alias, path)
        former = _former_above(lines, index, alias)
        if former is None or former[0] != attempt:
            return lines
        restored = True
        return [*lines[: index - 1], former[1], *lines[index + 1 :]]

    edit_lines(path, edit)
    return restored


def put_entry(path: Path, alias: str, entry: Mapping[str, str]) -> None:
    """Set an alias of our own, below the others; without a memory of what it was."""

    def edit(lines: list[str]) -> list[str]:
        kept = [line for line in lines if _split(line)[0] != alias]
        return [*kept, f"{_quote_name(alias)} = {format_entry(entry)}"]

    edit_lines(path, edit)


def remove_entry(path: Path, alias: str) -> None:
    """Remove an alias of our own; one that is not there stays so."""
    edit_lines(path, lambda lines: [line for line in lines if _split(line)[0] != alias])


def check_editable(path: Path) -> None:
    """
    Check that an edit would leave a file that PgBouncer can still read. Rewrites it as it is.

    :raises PermanentError: if not.
    """
    edit_lines(path, list, force=True)


def _split(line: str) -> tuple[str | None, str]:
    match = _LINE.fullmatch(line)
    if match is None:
        return None, ""
    name = match[2] if match[1] is None else match[1].replace('""', '"')
    return name, match[3]


def _find(lines: list[str], alias: str, path: Path) -> int:
    found = [index for index, line in enumerate(lines) if _split(line)[0] == alias]
    if len(found) != 1:
        raise PermanentError(
            f'alias "{alias}" stands {len(found)} times in the alias file "{path.name}"',
            hint="Every tenant needs exactly one line there before it is moved, like"
            f" {alias} = host=<host> port=<port> dbname=<database>",
        )
    return found[0]


def _former_above(lines: list[str], index: int, alias: str) -> tuple[int, str] | None:
    """Return the attempt and the line that the comment right above a line of an alias tells."""
    match = _FORMER.fullmatch(lines[index - 1]) if index else None
    if match is None or _split(match[2])[0] != alias:
        return None
    return int(match[1]), match[2]


def _find_former(lines: list[str], alias: str, attempt: int, path: Path) -> str:
    found = [match for line in lines if (match := _FORMER.fullmatch(line)) is not None]
    kept = [match[2] for match in found if int(match[1]) == attempt]
    for line in kept:
        if _split(line)[0] == alias:
            return line
    raise PermanentError(
        f'alias file "{path.name}" does not tell where alias "{alias}" pointed before',
        detail=f"There is no comment of attempt {attempt} with its former line.",
        hint="Put it back above the alias, from a copy of the file:"
        f" ; before <time> tenantferry {attempt}: {alias} = host=<host> port=<port>"
        " dbname=<database> user=<role> password=<password>",
    )


def _remember(line: str, attempt: int) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"; before {now} tenantferry {attempt}: {line.strip()}"


def _merge(former: str, present: str) -> str:
    """Return the former line; with the parameters that were changed in the present one."""
    (name, before), (_, after) = _split(former), _split(present)
    then, now = parse_entry(before), parse_entry(after)
    server = {key: value for key, value in then.items() if key in _SERVER}
    rest = {key: value for key, value in now.items() if key not in _SERVER}
    if rest == {key: value for key, value in then.items() if key not in _SERVER}:
        return former
    return f"{_quote_name(name or '')} = {format_entry({**server, **rest})}"


def _quote_name(name: str) -> str:
    return name if _BARE_NAME.fullmatch(name) else '"{}"'.format(name.replace('"', '""'))


def _quote_value(name: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        raise PermanentError(f'parameter "{name}" of an alias holds a line break')
    return value if _BARE_VALUE.fullmatch(value) else "'{}'".format(value.replace("'", "''"))
