"""What an error of a server means for the stream: try again, or ask a person."""

from __future__ import annotations

import psycopg2
from psycopg2 import errors

from tenantferry.errors import PermanentError, TenantferryError, TransientError


class RefusedValueError(PermanentError):
    """The server does not take a value of what was sent to it."""


def explain(error: psycopg2.Error, doing: str) -> TenantferryError:
    """
    Turn an error of psycopg2 into one of ours.

    :param doing: what could not be done, e.g. ``apply changes``.
    """
    diag = error.diag
    primary = diag.message_primary or " ".join(str(error).split())
    facts = (primary, diag.message_detail, diag.context)
    detail = " ".join(fact for fact in facts if fact)
    # Connection lost, shutdown, deadlock, serialization, disk full, no memory, cancelled.
    if isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)):
        return TransientError(f"could not {doing}", detail=detail)
    if isinstance(error, errors.InvalidTextRepresentation):
        return RefusedValueError(f"cannot {doing}", detail=detail, hint=diag.message_hint or "")
    return PermanentError(f"cannot {doing}", detail=detail, hint=diag.message_hint or "")
