"""What ``fleet.yaml`` may say."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self
from uuid import UUID

from pydantic import Field, model_validator

from tenantferry.fleet.base import (
    Declared,
    Name,
    PositiveFloat,
    PositiveInt,
    QualifiedName,
    TenantKey,
)
from tenantferry.fleet.operation import Archive, Criticality, Grace, Watch, Waves
from tenantferry.fleet.window import Window


class TableKind(StrEnum):
    """What happens to one table of a tenant."""

    TENANT = "tenant"  # moved, with tenant_id
    SHARED = "shared"  # reference data: compared, not copied
    SKIP = "skip"  # left behind


class Target(Declared):
    """
    The shared multi-tenant database.

    :ivar conn_id: Airflow connection of the migration role.
    :ivar regions: regions it may hold; empty means every region.
    """

    conn_id: Name
    regions: frozenset[str] = frozenset()


class RouterInstance(Declared):
    """
    One PgBouncer process.

    :ivar admin_conn_id: Airflow connection to its admin console (database ``pgbouncer``).
    :ivar aliases_file: the file it includes with ``%include``, where Airflow can write it; a
        relative path starts at the folder of the fleet file.
    """

    admin_conn_id: Name
    aliases_file: Path


class Router(Declared):
    """
    The poolers that carry the clients of a set of tenants.

    :ivar target_host: the target as PgBouncer reaches it; by default as the Airflow connection
        of the target says.
    """

    instances: Annotated[list[RouterInstance], Field(min_length=1)]
    target_host: str | None = None
    target_port: PositiveInt | None = None


class Source(Declared):
    """
    A tenant's own database.

    :ivar conn_id: Airflow connection of the migration role.
    :ivar database: needed where one connection serves many databases of a server; by default
        the database of the connection.
    """

    conn_id: Name
    database: Name | None = None


def name_dag(tenant: str) -> str:
    """Return the Dag that moves a tenant, also of one that is not declared any more."""
    return f"migrate_{tenant}"


class ThrottleLimits(Declared):
    """
    Above these limits the copy and the stream of a tenant wait. ``None``: no limit.

    :ivar replica_lag_seconds: of any physical standby of the source or of the target.
    :ivar query_latency_ms: average of all queries through the router's instances.
    :ivar ignored_standbys: ``application_name`` of standbys that may lag, e.g. a delayed one.
    """

    replica_lag_seconds: PositiveFloat | None = 10.0
    query_latency_ms: PositiveFloat | None = None
    ignored_standbys: frozenset[Name] = frozenset()


class Settings(Declared):
    """
    How a tenant is moved. ``defaults`` of the fleet file sets it for all, a tenant for itself.

    :ivar router: name of an entry of ``routers``.
    :ivar app_roles: roles on the source that the application logs in as.
    :ivar approval: ask a person before the cutover.
    :ivar tables: ``schema.table`` to what happens to it; a table not listed is a tenant table.
    :ivar max_write_pause_seconds: a cutover whose pause takes longer undoes itself.
    :ivar lag_threshold_seconds: a marker's round trip must stay below it ...
    :ivar lag_samples: ... this many times in a row.
    :ivar chunk_rows: rows that a chunk should have.
    :ivar backfill_workers: chunks of this tenant copied at the same time.
    :ivar round_budget_seconds: under a snapshot older than that no worker begins a chunk but its
        first; while it is held, the source cannot vacuum what it sees.
    :ivar slot_timeout_seconds: how long creating a slot may wait for open transactions.
    :ivar validation_max_age_seconds: an older validation is repeated before the cutover.
    :ivar recheck_seconds: a cutover undoes itself where comparing what was written last, while
        clients wait, takes longer; where that is to be expected, it pauses nobody.
    :ivar throttle: when the copy and the stream slow down.
    :ivar witness: prove from the target's log that the move changes no row of another tenant.
    :ivar stream_pool: Airflow pool of the long-running stream tasks.
    :ivar grace_hours: after its cutover the tenant can go back for so long, and is not retired.
    :ivar criticality: waves move the less critical first.
    :ivar window: when a wave may start the move; ``None``: at any time.
    """

    router: str = "main"
    region: str | None = None
    size_class: str = "small"
    app_roles: tuple[Name, ...] = ()
    approval: bool = False
    tables: dict[QualifiedName, TableKind] = Field(default_factory=dict)
    max_write_pause_seconds: PositiveFloat = 5.0
    lag_threshold_seconds: PositiveFloat = 1.0
    lag_samples: PositiveInt = 3
    chunk_rows: PositiveInt = 50_000
    backfill_workers: PositiveInt = 2
    round_budget_seconds: PositiveFloat = 1800.0
    slot_timeout_seconds: PositiveFloat = 300.0
    validation_max_age_seconds: PositiveFloat = 3600.0
    recheck_seconds: PositiveFloat = 1.0
    throttle: ThrottleLimits = ThrottleLimits()
    witness: bool = False
    stream_pool: Name = "tenantferry_streams"
    grace_hours: PositiveFloat = 168.0
    criticality: Criticality = Criticality.NORMAL
    window: Window | None = None


class Tenant(Settings):
    """
    One customer.

    :ivar key: slug; names the Dag, the role, the slot.
    :ivar id: value of ``tenant_id`` in the target.
    :ivar alias: database name that its clients ask PgBouncer for; by default the key.
    :ivar probe_conn_id: Airflow connection as the application, through PgBouncer; used to see
        after a cutover what a client sees. By default ``<key>_app``.
    """

    key: TenantKey
    id: UUID
    source: Source
    alias: Name = ""
    probe_conn_id: Name = ""

    @model_validator(mode="before")
    @classmethod
    def _fill_names(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("key"), str):
            return {"alias": data["key"], "probe_conn_id": f"{data['key']}_app", **data}
        return data

    @property
    def dag_id(self) -> str:
        """Dag that moves this tenant."""
        return name_dag(self.key)

    @property
    def role(self) -> str:
        """Login role of this tenant in the target."""
        return f"tenant_{self.key}"

    @property
    def schema_name(self) -> str:
        """Schema of this tenant's sequences in the target."""
        return f"t_{self.key}"

    @property
    def slot(self) -> str:
        """Durable replication slot on the source."""
        return f"tenantferry_{self.key}"

    @property
    def round_slot(self) -> str:
        """Temporary replication slot of a later round; no key makes it another tenant's `slot`."""
        return f"tfround_{self.key}"

    @property
    def validation_slot(self) -> str:
        """Temporary replication slot of a validation; no key makes it another tenant's `slot`."""
        return f"tfvalidate_{self.key}"

    @property
    def witness_slot(self) -> str:
        """Replication slot on the target, and its publication; no key makes it another's."""
        return f"tfwitness_{self.key}"

    @property
    def publication(self) -> str:
        """Publication on the source."""
        return f"tenantferry_{self.key}"

    @property
    def origin(self) -> str:
        """Replication origin in the target."""
        return f"tenantferry_{self.key}"

    def kind_of(self, schema: str, table: str) -> TableKind:
        """Return what happens to one table."""
        return self.tables.get(f"{schema}.{table}", TableKind.TENANT)


class Fleet(Declared):
    """
    All that one target serves.

    :ivar broken: tenants that cannot be used, and the sentence that says why.
    :ivar archive: ``None``: no tenant can be retired.
    """

    target: Target
    routers: dict[Name, Router]
    tenants: dict[str, Tenant]
    broken: dict[str, str] = Field(default_factory=dict)
    grace: Grace = Grace()
    archive: Archive | None = None
    waves: Waves = Waves()
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _check_no_tenant_is_both(self) -> Self:
        if both := self.tenants.keys() & self.broken.keys():
            raise ValueError(f"tenants are both usable and broken: {sorted(both)}")
        return self
