"""A fleet whose databases are real and whose Airflow does what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import NAMESPACE_DNS, uuid5

from psycopg2.extensions import connection

from tenantferry.control.phases import Phase
from tenantferry.control.registry import change_phase, ensure_registered
from tenantferry.control.waves import Standing, Wave, read_wave
from tenantferry.fleet.operation import Waves
from tenantferry.fleet.window import Day, Window
from tenantferry.waves.facts import LARGE
from tenantferry.waves.nightly import begin_wave
from tenantferry.waves.planning import WavePlan
from tenantferry.waves.reading import Databases
from tenantferry.waves.running import advance_wave
from tenantferry.waves.runs import Wait
from tenantferry.waves.standings import RunLook
from tenantferry.waves.summary import WaveSummary

WAY = (Phase.PREPARED, Phase.BACKFILLING, Phase.STREAMING, Phase.VALIDATED, Phase.CUTTING_OVER)


@dataclass
class ScriptedRuns:
    """
    The runs of an Airflow that does what the test says.

    :ivar refusals: of tenants that it cannot start.
    :ivar crash: raised by the next start, before there is a run.
    """

    looks: dict[tuple[str, str], RunLook] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    crash: Exception | None = None

    def look(self, tenant: str, run_id: str) -> RunLook | None:
        return self.looks.get((tenant, run_id))

    def find_open(self, tenant: str) -> RunLook | None:
        found = [look for (key, _), look in self.looks.items() if key == tenant and look.is_open]
        return found[0] if found else None

    def delete(self, tenant: str) -> None:
        """Let a person delete the runs of a tenant, or Airflow clean them away."""
        self.looks = {run: look for run, look in self.looks.items() if run[0] != tenant}

    def start(self, tenant: str, run_id: str, *, note: str) -> str:
        if self.crash is not None:
            crash, self.crash = self.crash, None
            raise crash
        if tenant in self.refusals:
            return self.refusals[tenant]
        assert (tenant, run_id) not in self.looks
        assert note.startswith("Wave ")
        self.looks[tenant, run_id] = RunLook(Standing.RUNNING)
        self.started.append(tenant)
        return ""

    def set_look(self, tenant: str, look: RunLook) -> None:
        """Let the latest run of a tenant stand so."""
        *_, run = (run for run in self.looks if run[0] == tenant)
        self.looks[run] = look


@dataclass
class NightStage:
    """A fleet, its databases and its Airflow."""

    databases: Databases
    runs: ScriptedRuns
    target: connection

    until = datetime.now(UTC) + timedelta(hours=8)

    def plan(self, run_id: str = "night 1") -> WavePlan:
        """Plan the wave of a run that has started nobody yet."""
        made = begin_wave(self.databases, self.runs, run_id=run_id, until=self.until)
        assert isinstance(made, WavePlan)
        return made

    def advance(self, run_id: str = "night 1") -> Wait | WaveSummary:
        """Take the next step."""
        return advance_wave(self.databases, self.runs, run_id=run_id)

    def configure(self, **settings: object) -> None:
        """Declare some settings of the waves differently."""
        waves = Waves(**{**self.databases.fleet.waves.model_dump(), **settings})
        fleet = self.databases.fleet.model_copy(update={"waves": waves})
        self.databases = replace(self.databases, fleet=fleet)

    def open_window(self, tenant: str, begin: datetime, *, hours: float) -> None:
        """Declare a window that begins then, once a week."""
        fleet = self.databases.fleet
        window = Window.model_validate(
            {
                "from": f"{begin:%H:%M:%S.%f}",
                "to": f"{begin + timedelta(hours=hours):%H:%M:%S.%f}",
                "days": [list(Day)[begin.weekday()]],
                "timezone": "UTC",
            }
        )
        declared = fleet.tenants[tenant].model_copy(update={"window": window})
        tenants = {**fleet.tenants, tenant: declared}
        self.databases = replace(
            self.databases, fleet=fleet.model_copy(update={"tenants": tenants})
        )

    def declare_large(self, tenant: str) -> None:
        """Declare one more tenant, which must be alone, in the place of the first one's source."""
        fleet = self.databases.fleet
        first = next(iter(fleet.tenants.values()))
        changes = {"key": tenant, "id": uuid5(NAMESPACE_DNS, tenant), "size_class": LARGE}
        self.databases = replace(
            self.databases,
            fleet=fleet.model_copy(
                update={"tenants": {**fleet.tenants, tenant: first.model_copy(update=changes)}}
            ),
            sources={**self.databases.sources, tenant: self.databases.sources[first.key]},
        )

    def bring_live(self, tenant: str) -> None:
        """Let the run of a tenant end well."""
        self.register(tenant, [*WAY, Phase.LIVE])
        self.runs.set_look(tenant, RunLook(Standing.LIVE, is_open=False))

    def fail(self, tenant: str, *, is_open: bool = False) -> None:
        """Let the run of a tenant fail."""
        look = RunLook(Standing.FAILED, is_open, detail='task "preflight" failed')
        self.runs.set_look(tenant, look)

    def register(self, tenant: str, phases: list[Phase]) -> None:
        """Lead a tenant through its phases."""
        with self.target:
            ensure_registered(
                self.target,
                tenant=tenant,
                tenant_id=uuid5(NAMESPACE_DNS, tenant),
                source_identity=tenant,
                run_id=None,
            )
            for phase in phases:
                change_phase(self.target, tenant, phase, run_id=None, reason="test")

    def wave(self, run_id: str) -> Wave:
        """Return the wave of a run, which has to exist."""
        wave = read_wave(self.target, run_id)
        assert wave is not None
        return wave

    def standings(self, run_id: str) -> dict[str, Standing | None]:
        """Return how the members of a wave stand."""
        return {member.tenant: member.standing for member in self.wave(run_id).members}
