"""What a failed statement of a copy or a comparison means: try again, or tell a person."""

from __future__ import annotations

import psycopg2
from psycopg2 import errors

from tenantferry.errors import PermanentError, TenantferryError, TransientError

# Facts about data or schema: the same rows fail again.
_PERMANENT = (
    psycopg2.DataError,
    psycopg2.IntegrityError,
    psycopg2.ProgrammingError,
    psycopg2.NotSupportedError,
)
# Conditions that pass although their class says otherwise.
_PASSING = (errors.SerializationFailure, errors.DeadlockDetected, errors.QueryCanceled)


def describe_failure(error: psycopg2.Error, *, doing: str, hint: str = "") -> TenantferryError:
    """
    Turn an error of the driver into one of ours, with what the server said.

    :param doing: what could not be done, e.g. ``copy table "public.orders"``.
    """
    diagnosis = error.diag
    said = [diagnosis.message_primary or " ".join(str(error).split()) or type(error).__name__]
    said += [part for part in (diagnosis.message_detail, diagnosis.context) if part]
    detail = " ".join(part if part.endswith((".", '"')) else f"{part}." for part in said)
    if isinstance(error, _PERMANENT) and not isinstance(error, _PASSING):
        return PermanentError(f"cannot {doing}", detail=detail, hint=hint)
    return TransientError(f"could not {doing}", detail=detail, hint=hint)
