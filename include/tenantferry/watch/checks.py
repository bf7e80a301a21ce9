"""The checks, by the name of the task that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tenantferry.watch.attempts import check_attempts
from tenantferry.watch.graces import check_graces
from tenantferry.watch.report import Report
from tenantferry.watch.schemas import check_schemas
from tenantferry.watch.servers import check_servers
from tenantferry.watch.slots import check_slots
from tenantferry.watch.streams import check_streams
from tenantferry.watch.watched import Watched

CHECKS: Mapping[str, Callable[[Watched], Report]] = {
    "servers": check_servers,
    "lag_and_streams": check_streams,
    "slots_and_wal": check_slots,
    "schemas": check_schemas,
    "graces": check_graces,
    "attempts": check_attempts,
}
