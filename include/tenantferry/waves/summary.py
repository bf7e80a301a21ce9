"""How a wave ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from tenantferry.control.waves import Member, Standing, Wave
from tenantferry.errors import PermanentError
from tenantferry.fleet.operation import Waves
from tenantferry.waves.starting import explain_failure, has_failed


class WaveIdleError(PermanentError):
    """A wave was to move tenants, and started nobody in all its time."""


class WaveStoppedError(PermanentError):
    """A wave stopped itself. Nobody is half-way: what was in flight went on to its end."""


@dataclass(frozen=True, slots=True)
class WaveSummary:
    """
    What became of the tenants of a wave.

    :ivar failed: with the reasons; also who is not finished in time, and goes on.
    :ivar asking: wait for a person; the stream keeps them current.
    :ivar declined: a person refused the cutover.
    :ivar not_started: left to a later wave, with the reason where there is one.
    """

    wave: int | None = None
    stage: int | None = None
    live: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    asking: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()
    not_started: tuple[str, ...] = ()

    def tell(self) -> str:
        """Return it in one line."""
        parts = {
            "live": self.live,
            "failed": self.failed,
            "waiting for a person": self.asking,
            "declined": self.declined,
            "not started": self.not_started,
        }
        told = [f"{name}: {', '.join(tenants)}" for name, tenants in parts.items() if tenants]
        return "; ".join(told) or "nothing was to be done"


def summarize(wave: Wave, settings: Waves, now: datetime) -> WaveSummary:
    """Tell what became of the tenants of a wave that is over."""

    def keys(condition: Callable[[Member], bool]) -> tuple[str, ...]:
        return tuple(member.tenant for member in wave.members if condition(member))

    idle = [m for m in wave.members if m.standing in (None, Standing.SKIPPED)]
    return WaveSummary(
        wave=wave.number,
        stage=wave.stage,
        live=keys(lambda m: m.standing is Standing.LIVE),
        failed=tuple(
            explain_failure(m, settings) for m in wave.members if has_failed(m, settings, now)
        ),
        asking=keys(lambda m: m.standing is Standing.ASKING),
        declined=keys(lambda m: m.standing is Standing.DECLINED),
        not_started=tuple(f"{m.tenant} ({m.detail})" if m.detail else m.tenant for m in idle),
    )


def check_wave(wave: Wave, summary: WaveSummary) -> None:
    """
    Check that a wave that is over was not stopped, and did what could be done.

    :raises WaveStoppedError: if it was stopped.
    :raises WaveIdleError: if it could start nobody.
    """
    if wave.stop_reason is not None:
        raise WaveStoppedError(
            f"wave {wave.number} stopped: {wave.stop_reason}",
            detail=f"Nobody was left half-way: {summary.tell()}.",
            hint="See the runs of those that failed; mend what they say and clear their failed"
            ' tasks. Then clear "run_wave" to go on tonight, trigger "nightly_wave" once its'
            " time is over, or wait for the next night, which goes on where this one stopped.",
        )
    is_idle = all(member.started_at is None for member in wave.members)
    # One that was skipped is told, and left to others: nothing of the wave's was in its way.
    if is_idle and any(member.standing is None for member in wave.members):
        raise WaveIdleError(
            f"wave {wave.number} started nobody in all its time",
            detail=f"Left to a later wave: {', '.join(summary.not_started)}.",
            hint="See what was in the way: end or mend the run that was in flight, bring the server"
            " back, or raise what is short. The next wave goes on where this one stopped; it may be"
            " triggered now.",
        )
