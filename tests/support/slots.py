"""Replication slots of a test: they belong to the server, and outlive their database."""

from __future__ import annotations

from tenantferry.local.postgres import PostgresServer


def drop_slots(server: PostgresServer, condition: str) -> None:
    """
    Drop what matches, and end whoever reads it.

    A server notices a while after a stream has ended that nobody reads any more.
    """
    server.psql(
        "-c",
        "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
        f" WHERE active_pid IS NOT NULL AND {condition}",
        "-c",
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        f" WHERE NOT temporary AND {condition}",
    )
