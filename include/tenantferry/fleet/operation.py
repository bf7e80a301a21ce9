"""How a fleet is run: ``grace``, ``archive``, ``waves`` and ``watch`` of ``fleet.yaml``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tenantferry.fleet.base import Declared, Name, PositiveFloat, PositiveInt


class Grace(Declared):
    """
    The way back of live tenants.

    :ivar wal_budget_bytes: log that the target keeps for a source that does not take its changes;
        beyond it that tenant loses its way back.
    """

    wal_budget_bytes: PositiveInt = 8 * 1024**3


class Archive(Declared):
    """
    Where the dumps of retired sources go.

    :ivar url: folder, as Airflow's object storage names it, e.g. ``s3://aws_default@bucket/path``
        or ``file:///srv/archive``.
    :ivar restore_conn_id: Airflow connection to a server on which the migration role may create a
        database: there each dump is restored once, to see that it can be.
    """

    url: Annotated[str, Field(pattern=r"^[a-z0-9+]+://.+$")]
    restore_conn_id: Name


class Waves(Declared):
    """
    The moves that the clock starts.

    :ivar schedule: cron expression of ``nightly_wave``; ``None``: only by hand.
    """

    schedule: str | None = None


class Watch(Declared):
    """
    What ``watch_fleet`` looks at.

    :ivar schedule: cron expression.
    :ivar lag_seconds: a stream that is further behind is a finding.
    """

    schedule: str = "*/5 * * * *"
    lag_seconds: PositiveFloat = 60.0
