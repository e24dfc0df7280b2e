# SPDX-License-Identifier: Apache-2.0
"""Alarms and dashboards: they query existing metrics only.

promtool tests each alarm, and each alarm has a runbook.
"""

import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from novadocker.exporter.collector import HostCollector, LeakCollector, WatchCollector
from novadocker.exporter.leaks import Search
from novadocker.exporter.rendering import render
from novadocker.exporter.rings import Rings
from novadocker.exporter.watch import Watch
from tests import CHECKOUT
from tests.unit.exporter.test_exporter import CONTAINER, places, put_container, put_identity

ROOT = CHECKOUT
RULES = ROOT / "etc" / "prometheus" / "novadocker.rules.yml"
OVERRIDES = RULES.with_name("novadocker.overrides.yml")
CASES = ROOT / "tests" / "prometheus" / "novadocker.test.yml"
OWNER = "NovadockerOwner"
LEVELS = {"notice", "warning", "critical", "page"}
TYPES = {"counter": "_total", "gauge": ""}


@functools.cache
def cases() -> frozenset[str]:
    """Return the names of promtool's cases."""
    return frozenset(case["name"] for case in yaml.safe_load(CASES.read_text())["tests"])


@functools.cache
def alarms() -> list[tuple[str, str, str]]:
    """Return the name, level and expression of each alarm."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [
        (rule["alert"], rule["labels"]["severity"], rule["expr"])
        for group in groups
        for rule in group["rules"]
        if rule["alert"] != OWNER
    ]


@functools.cache
def thresholds() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Return the thresholds that each alarm queries, by its name and level."""
    return {
        (name, level): set(re.findall(r'threshold\{alarm="(\w+)",level="(\w+)"\}', expression))
        for name, level, expression in alarms()
        if "novadocker_threshold" in expression
    }


@pytest.mark.parametrize(("name", "level", "expression"), alarms())
def test_each_alarm_has_a_runbook_and_cases(name: str, level: str, expression: str) -> None:
    assert level in LEVELS
    assert f"\n{name}\n{'=' * len(name)}\n" in (ROOT / "docs" / "alarms.rst").read_text()
    assert {f"{name} {level} bad", f"{name} {level} good"} <= cases()


@pytest.mark.parametrize(("name", "level"), thresholds())
def test_each_threshold_can_be_another_on_a_host(name: str, level: str) -> None:
    assert f"{name} {level} override" in cases()
    # The alarm of the culprit uses the threshold of the host's alarm.
    culprit_of = {"NovadockerServerMostThreads": "NovadockerHostThreads"}
    assert thresholds()[name, level] == {(culprit_of.get(name, name), level)}


def test_the_examples_of_overrides_are_of_alarms() -> None:
    groups = yaml.safe_load(OVERRIDES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["record"] for rule in rules} == {"novadocker_threshold"}
    named = {(rule["labels"]["alarm"], rule["labels"]["level"]) for rule in rules}
    assert named <= thresholds().keys()
    assert all(rule["labels"]["instance"] for rule in rules)


def test_the_owner_is_told_of_each_alarm_of_a_server() -> None:
    assert {f"{OWNER} bad", f"{OWNER} good"} <= cases()
    routed = yaml.safe_load(RULES.with_name("alertmanager.yml").read_text())
    assert routed["route"]["receiver"] == "operators"
    owner = routed["route"]["routes"][0]
    assert (owner["matchers"], owner["receiver"]) == ([f'alertname="{OWNER}"'], "owner")
    assert not owner.get("continue")
    to = {r["name"]: r["email_configs"][0]["to"] for r in routed["receivers"]}
    assert to["owner"] == "{{ .GroupLabels.contact }}"
    assert "contact" in owner["group_by"]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[CollectorRegistry]:
    """Return a registry with the exporter's metrics of a host with one server."""
    put_container(tmp_path, 1, CONTAINER)
    put_identity(tmp_path, CONTAINER)
    watch = Watch(tmp_path, tmp_path / "data/containers", Rings(tmp_path / "kernel"), None, print)
    found = CollectorRegistry()
    found.register(HostCollector(places(tmp_path)))
    found.register(WatchCollector(watch))
    found.register(LeakCollector(Search(tmp_path, tmp_path / "data", tmp_path)))
    yield found
    watch.close()


@pytest.fixture
def told(registry: CollectorRegistry) -> set[str]:
    """Return the names of all metrics of the exporter."""
    return {family.name + TYPES[family.type] for family in registry.collect()}


def metrics_of(expressions: Iterable[str]) -> set[str]:
    return set(re.findall(r"novadocker_(?:host|server)_\w+", "\n".join(expressions)))


def test_each_metric_of_an_alarm_is_one_of_the_exporter(told: set[str]) -> None:
    wanted = metrics_of(expression for _, _, expression in alarms())
    assert wanted
    assert wanted - told == set()


@pytest.mark.parametrize("kind", ["host", "server"])
def test_each_metric_of_a_dashboard_is_one_of_the_exporter(told: set[str], kind: str) -> None:
    board = json.loads((ROOT / "etc" / "grafana" / f"novadocker-{kind}.json").read_text())
    variables = [variable["query"] for variable in board["templating"]["list"]]
    expressions = [
        target["expr"] for panel in board["panels"] for target in panel.get("targets", [])
    ]
    expressions += [query["query"] for query in variables if isinstance(query, dict)]
    assert metrics_of(expressions)
    assert metrics_of(expressions) - told == set()
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_names_are_as_prometheus_wants_them(registry: CollectorRegistry) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    text = render(registry.collect())
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "test", "rules", str(CASES)),
        ("amtool", "check-config", str(RULES.with_name("alertmanager.yml"))),
    ],
    ids=["rules", "alertmanager"],
)
def test_prometheus_agrees(command: tuple[str, ...]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
