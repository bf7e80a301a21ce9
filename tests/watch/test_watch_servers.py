from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tenantferry.connections import ConnectionParams
from tenantferry.local.accounts import free_port
from tenantferry.watch.report import FindingsError
from tenantferry.watch.servers import check_servers
from tenantferry.watch.watched import Watched

Declare = Callable[..., Watched]
Register = Callable[..., None]


def test_a_fleet_whose_servers_answer_has_no_finding(declare: Declare, register: Register) -> None:
    register("streaming")

    report = check_servers(declare())

    assert report.findings == []
    assert len(report.looks) == 2
    assert all(look.numbers["milliseconds"] is not None for look in report.looks)


def test_a_dead_source_server_is_told_once_and_stops_no_other_look(
    declare: Declare, register: Register, source_params: ConnectionParams
) -> None:
    register("streaming")
    port = free_port()
    dead = {key: replace(source_params, port=port, database=key) for key in ("globex", "initech")}

    report = check_servers(declare(sources={**dead, "acme": source_params}))

    (finding,) = report.problems
    assert finding.subject == f"server {source_params.host}:{port}"
    assert "could not connect" in finding.detail.lower()
    assert "Tenants: globex, initech." in finding.detail
    seen = {look.subject: look.numbers["milliseconds"] for look in report.looks}
    assert [seconds is None for subject, seconds in seen.items() if "acme" in subject] == [False]


def test_a_server_that_swallows_packets_costs_seconds(
    declare: Declare, source_params: ConnectionParams
) -> None:
    silent = replace(source_params, host="192.0.2.1")  # of a network that exists nowhere

    began = time.monotonic()
    report = check_servers(
        declare(sources={key: replace(silent, database=key) for key in ("a", "b", "c")})
    )

    assert len(report.problems) == 1
    assert time.monotonic() - began < 12


def test_a_database_that_is_gone_is_told_as_that_of_its_tenant(
    declare: Declare, register: Register, source_params: ConnectionParams
) -> None:
    register("streaming")

    report = check_servers(declare(sources={"acme": source_params.with_database("gone")}))

    (finding,) = report.problems
    assert 'source of tenant "acme"' in finding.subject
    assert "does not exist" in finding.detail


def test_a_source_that_is_not_needed_any_more_is_not_asked(
    declare: Declare, register: Register, source_params: ConnectionParams
) -> None:
    register("retired")

    report = check_servers(declare(sources={"acme": replace(source_params, port=free_port())}))

    assert report.findings == []
    assert len(report.looks) == 1


def test_a_dead_target_is_a_finding_and_sources_are_still_asked(
    declare: Declare, target_params: ConnectionParams
) -> None:
    report = check_servers(declare(target=replace(target_params, port=free_port())))

    (finding,) = report.problems
    assert finding.subject == "target"
    assert len(report.looks) == 2


def test_what_cannot_be_used_of_the_declaration_is_a_finding(declare: Declare) -> None:
    report = check_servers(declare(unusable={'tenant "globex"': "id: not a uuid"}))

    (finding,) = report.problems
    assert (finding.subject, finding.detail) == ('tenant "globex"', "id: not a uuid")


def test_a_tenant_in_flight_that_nobody_declares_is_a_finding(
    declare: Declare, register: Register
) -> None:
    register("streaming", tenant="forgotten")

    (finding,) = check_servers(declare(sources={})).problems

    assert finding.subject == 'tenant "forgotten"'
    assert 'phase "streaming"' in finding.detail


def test_a_report_with_findings_fails_and_lists_each_with_what_to_do(declare: Declare) -> None:
    report = check_servers(declare(unusable={"x": "Wrong.", "y": "Also wrong."}))

    with pytest.raises(FindingsError) as failure:
        report.check("servers")

    text = str(failure.value)
    assert text.startswith('check "servers" of the fleet found 2 thing(s) to act on')
    assert "(1) X: Wrong." in text
    assert "(2) Y: Also wrong." in text
    assert text.count("To do: Mend it") == 2
