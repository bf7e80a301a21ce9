"""What ``make demo`` may be told, by variables of the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tenantferry.errors import PermanentError
from tenantferry.local.story import Story

# With the sizes 1, 1/2 and 1/6 three tenants have a million rows in all.
_DEFAULT_ROWS = 600_000


@dataclass(frozen=True, slots=True)
class Options:
    """
    One demo.

    :ivar rows: of the largest tenant.
    :ivar rate: transactions per second of each client.
    :ivar dump: plain SQL to load in place of the sample.
    :ivar source_major: PostgreSQL version; ``None`` is the machine's own.
    :ivar story: what happens after the first move.
    :ivar keep: leave everything running at the end.
    """

    tenants: int = 3
    rows: int = _DEFAULT_ROWS
    rate: float = 50.0
    dump: Path | None = None
    source_major: int | None = None
    target_major: int | None = None
    story: Story = Story.MIGRATE
    keep: bool = False


def read_options(environment: Mapping[str, str]) -> Options:
    """
    Read the options; an empty one is not set.

    :raises PermanentError: if a value cannot be used.
    """
    defaults = Options()
    dump = environment.get("TENANT_SQL")
    if dump and not Path(dump).is_file():
        raise PermanentError(f'TENANT_SQL="{dump}" is not a file')
    return Options(
        tenants=_read_number(environment, "TENANTS", 1, 100) or defaults.tenants,
        # The sample needs some rows in each table, for each connection of a client.
        rows=_read_number(environment, "ROWS", 1_000, 10**10) or defaults.rows,
        rate=float(_read_number(environment, "RATE", 1, 10_000) or defaults.rate),
        dump=Path(dump).resolve() if dump else None,
        source_major=_read_number(environment, "SOURCE_PG", 14, 99),
        target_major=_read_number(environment, "TARGET_PG", 15, 99),
        story=_read_story(environment),
        keep=environment.get("KEEP", "") not in ("", "0"),
    )


def _read_story(environment: Mapping[str, str]) -> Story:
    text = environment.get("STORY") or Story.MIGRATE
    try:
        return Story(text)
    except ValueError:
        known = ", ".join(Story)
        raise PermanentError(f"STORY={text} is not known", hint=f"There is: {known}.") from None


def _read_number(
    environment: Mapping[str, str], name: str, least: int, greatest: int
) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= greatest:
        raise PermanentError(f"{name}={text} is not a whole number from {least} to {greatest}")
    return number
