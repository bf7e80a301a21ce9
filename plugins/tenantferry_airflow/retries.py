"""Which failure is tried again: the class of the error says it."""

from __future__ import annotations

import psycopg2
from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule

from tenantferry.errors import PermanentError, TransientError

# Rules are asked in this order. A retry keeps the task's own delay and number of retries.
RETRY_BY_ERROR_CLASS = ExceptionRetryPolicy(
    rules=[
        RetryRule(
            exception=PermanentError,
            action=RetryAction.FAIL,
            reason="a retry only repeats it: a person must change a fact, then clear this task",
        ),
        RetryRule(
            exception=TransientError,
            action=RetryAction.RETRY,
            reason="the same call may work next time",
        ),
        RetryRule(
            exception=[psycopg2.OperationalError, psycopg2.InterfaceError],
            action=RetryAction.RETRY,
            reason="the server or the connection failed, not the statement",
        ),
        # libpq's own failures carry no SQLSTATE and come as this very class, e.g. a server that
        # closed the connection within COPY.
        RetryRule(
            exception=psycopg2.DatabaseError,
            match_subclasses=False,
            action=RetryAction.RETRY,
            reason="the connection failed, not the statement",
        ),
        RetryRule(
            exception=psycopg2.Error,
            action=RetryAction.FAIL,
            reason="the server refuses the statement itself",
        ),
    ]
)
