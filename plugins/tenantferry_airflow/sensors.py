"""The gate before validation and cutover: the stream keeps up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from tenantferry.errors import PermanentError
from tenantferry_airflow.triggers import LagTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

# Beyond the trigger's own deadline, which says more: for a triggerer that is gone for good.
_GRACE = timedelta(minutes=10)


class LagSensor(BaseSensorOperator):
    """
    Wait until markers travel from source to target fast enough, several times in a row.

    Deferred from the start: it occupies no worker slot. An unknown lag is never a small one.
    Does not look after the stream, which is a task of its own.

    :param tenant: key of a tenant of the fleet file. (templated)
    :return: the round trips that opened the gate, in seconds.
    """

    template_fields: Sequence[str] = ("tenant",)
    ui_color = "#fde68a"

    def __init__(self, *, tenant: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tenant = tenant

    def execute(self, context: Context) -> None:  # noqa: ARG002  # Airflow's signature
        """Hand over to the triggerer at once."""
        self.defer(
            trigger=LagTrigger(tenant=self.tenant, deadline=time.time() + self.timeout),
            method_name=self.finish.__name__,
            timeout=timedelta(seconds=self.timeout) + _GRACE,
        )

    def finish(
        self,
        context: Context,  # noqa: ARG002  # Airflow's signature
        event: dict[str, Any],
    ) -> dict[str, Any]:
        """
        Report what the trigger saw.

        :raises PermanentError: if the gate did not open.
        """
        if event["status"] != "open":
            raise PermanentError(
                event["message"],
                detail=event["detail"],
                hint='See the log of the task "stream_cdc"; clear this task to wait again.',
            )
        self.log.info("the stream keeps up: round trips %s s", event["samples"])
        return {"samples": event["samples"]}
