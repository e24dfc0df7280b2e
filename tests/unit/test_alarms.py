# SPDX-License-Identifier: Apache-2.0
"""Alarms and dashboards: they ask for metrics that there are.

Each alarm is tested by promtool, and has a runbook.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from novadocker.exporter.collector import HostCollector, Places, WatchCollector
from novadocker.exporter.rings import Rings
from novadocker.exporter.watch import Watch

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "etc" / "prometheus" / "novadocker.rules.yml"
CASES = ROOT / "tests" / "prometheus" / "novadocker.test.yml"
LEVELS = {"notice", "warning", "critical", "page"}
TYPES = {"counter": "_total", "gauge": ""}


def alarms() -> list[tuple[str, str, str]]:
    """Return the name, level and expression of each."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [
        (rule["alert"], rule["labels"]["severity"], rule["expr"])
        for group in groups
        for rule in group["rules"]
    ]


@pytest.mark.parametrize(("name", "level", "expression"), alarms())
def test_each_alarm_has_a_runbook_and_cases(name: str, level: str, expression: str) -> None:
    assert level in LEVELS
    assert f"\n{name}\n{'=' * len(name)}\n" in (ROOT / "docs" / "alarms.rst").read_text()
    cases = {case["name"] for case in yaml.safe_load(CASES.read_text())["tests"]}
    assert {f"{name} {level} bad", f"{name} {level} good"} <= cases


@pytest.fixture
def told(tmp_path: Path) -> set[str]:
    """The names of all metrics of the exporter."""
    (tmp_path / "data").mkdir()
    collector = HostCollector(Places(tmp_path, tmp_path / "data", str(tmp_path / "engine")))
    watch = Watch(tmp_path, tmp_path / "data/containers", Rings(tmp_path / "kernel"), None)
    registry = CollectorRegistry()
    registry.register(collector)
    registry.register(WatchCollector(watch))
    names = {family.name + TYPES[family.type] for family in registry.collect()}
    watch.close()
    return names


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
