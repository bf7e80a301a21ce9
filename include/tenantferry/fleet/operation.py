"""How a fleet is run: ``grace``, ``archive``, ``waves`` and ``watch`` of ``fleet.yaml``."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, field_validator

from tenantferry.fleet.base import Declared, Name, PositiveFloat, PositiveInt
from tenantferry.fleet.window import Timezone

Percent = Annotated[int, Field(gt=0, le=100)]


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
    :ivar schedule: cron expression of ``retire_tenants``, in UTC; ``None``: only by hand.
    """

    url: Annotated[str, Field(pattern=r"^[a-z0-9+]+://.+$")]
    restore_conn_id: Name
    schedule: str | None = "@daily"


class Criticality(StrEnum):
    """How much a failure would hurt, the least first: in this order tenants are moved."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class Waves(Declared):
    """
    The moves that the clock starts. A wave is one run of ``nightly_wave``; it serves one stage.

    :ivar schedule: cron expression of ``nightly_wave``; ``None``: only by hand.
    :ivar timezone: of the schedule, and of every window that names none.
    :ivar hours: so long after its time a wave may start tenants; it then waits for those in flight.
    :ivar stages: percent of the tenants that remain when a stage begins; at least one tenant each.
        Tenants that come after the last stage belong to the last one too.
    :ivar soak_hours: a stage begins no sooner after the last tenant of the one before went live.
    :ivar most_tenants: that one wave starts.
    :ivar most_in_flight: at the same time, for the target.
    :ivar most_in_flight_per_source: at the same time, for each source server.
    :ivar error_budget: with more failures than that a wave starts no further tenant; nor does it
        when all tenants of a smaller stage have failed.
    :ivar deadline_hours: a run that works for longer counts as a failure; nobody ends it.
    :ivar approval_hours: a tenant that waits for a person for longer is left to that person: the
        wave goes on without it, and it is no failure.
    :ivar alone_bytes: a database of this size or more is never in flight beside another one; nor
        is a tenant whose ``size_class`` is ``large``.
    :ivar retry_after_hours: a tenant that failed is picked again after so long; ``None``: that is
        left to a person.
    """

    schedule: str | None = None
    timezone: Timezone = "UTC"
    hours: PositiveFloat = 8.0
    stages: Annotated[tuple[Percent, ...], Field(min_length=1)] = (1, 5, 25, 100)
    soak_hours: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    most_tenants: PositiveInt = 50
    most_in_flight: PositiveInt = 8
    most_in_flight_per_source: PositiveInt = 2
    error_budget: Annotated[int, Field(ge=0)] = 2
    deadline_hours: PositiveFloat = 12.0
    approval_hours: PositiveFloat = 2.0
    alone_bytes: PositiveInt = 100 * 1024**3
    retry_after_hours: PositiveFloat | None = None

    @field_validator("stages")
    @classmethod
    def _check_stages(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if list(stages) != sorted(set(stages)) or stages[-1] != 100:
            raise ValueError("each stage must be larger than the one before, and the last one 100")
        return stages


class Notifier(Declared):
    """
    Somebody who is told when a task fails.

    :ivar class_: ``class`` in the file: a notifier of Airflow, e.g.
        ``airflow.providers.smtp.notifications.smtp.SmtpNotifier``.
    :ivar arguments: of its constructor; templates where the notifier allows them, with
        ``exception`` for what went wrong.
    """

    class_: Annotated[str, Field(alias="class", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
    arguments: dict[str, Any] = Field(default_factory=dict)


class Watch(Declared):
    """
    What ``watch_fleet`` and ``validate_fleet`` look at.

    :ivar schedule: cron expression of ``watch_fleet``; ``None``: only by hand.
    :ivar lag_seconds: a stream that is further behind, or unknown for so long, is a finding.
    :ivar stalled_seconds: a stream that works reports every second; without a report for so long
        it stands still.
    :ivar slot_inactive_seconds: a slot may be without a reader for so long.
    :ivar wal_hours: a slot that will be lost, or will have filled the disk, within so many hours,
        at the rate of the last hours; while a step of its tenant runs, within three.
    :ivar wal_kept_bytes: log that a slot may keep back where nothing says how much room there is.
    :ivar wal_disk_bytes: Airflow connection of a server to how large its log may get.
    :ivar grace_ends_hours: say so long before that a tenant's way back ends; 0: do not say it.
    :ivar validate_schedule: cron expression of ``validate_fleet``; ``None``: only by hand.
    :ivar validate_tenants: how many it compares in each run.
    :ivar uncompared_hours: a tenant that could be compared and was not for so long is a finding.
    :ivar notifiers: told of each failed task, of these and of the other Dags.
    """

    schedule: str | None = "*/5 * * * *"
    lag_seconds: PositiveFloat = 60.0
    stalled_seconds: PositiveFloat = 60.0
    slot_inactive_seconds: PositiveFloat = 3600.0
    wal_hours: PositiveFloat = 24.0
    wal_kept_bytes: PositiveInt = 16 * 1024**3
    wal_disk_bytes: dict[Name, PositiveInt] = Field(default_factory=dict)
    grace_ends_hours: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 24.0
    validate_schedule: str | None = "*/15 * * * *"
    validate_tenants: Annotated[int, Field(ge=0)] = 1
    uncompared_hours: PositiveFloat = 72.0
    notifiers: tuple[Notifier, ...] = ()
