# SPDX-License-Identifier: Apache-2.0
"""``.zuul.yaml`` names jobs, environments of tox, targets of make and files that exist."""

import configparser
import re
from typing import Any

import pytest
import yaml

from tests import CHECKOUT

# Jobs of other projects of OpenStack's Zuul.
PARENTS = {"openstack-tox", "devstack-tempest"}


@pytest.fixture(scope="module")
def jobs() -> dict[str, dict[str, Any]]:
    listed = [item["job"] for item in load() if "job" in item]
    found = {job["name"]: job for job in listed}
    assert len(found) == len(listed)
    return found


def load() -> Any:
    return yaml.safe_load((CHECKOUT / ".zuul.yaml").read_text())


def test_the_project_runs_every_job(jobs: dict[str, dict[str, Any]]) -> None:
    (project,) = (item["project"] for item in load() if "project" in item)
    assert project["gate"] == project["check"]
    wanted = {name for name, job in jobs.items() if not job.get("abstract")}
    assert set(project["check"]["jobs"]) == wanted
    for kind in ("unit", "functional", "devstack"):
        assert any(name.startswith(f"novadocker-{kind}") for name in wanted)


def test_every_parent_exists(jobs: dict[str, dict[str, Any]]) -> None:
    parents = {job.get("parent", "openstack-tox") for job in jobs.values()}
    assert parents <= PARENTS | jobs.keys()


def test_every_environment_of_tox_exists(jobs: dict[str, dict[str, Any]]) -> None:
    tox = configparser.ConfigParser()
    tox.read(CHECKOUT / "tox.ini")
    known = set(re.split(r"[,\s]+", tox["tox"]["env_list"]))
    # A job that runs Tempest uses Tempest's own tox.
    named = {
        name: job["vars"]["tox_envlist"]
        for name, job in jobs.items()
        if "tox_envlist" in job.get("vars", {}) and job["parent"] != "devstack-tempest"
    }
    assert {name: env for name, env in named.items() if env not in known} == {}
    assert {f"py{version}" for version in ("311", "312", "313")} <= set(named.values())


def test_a_change_of_pages_runs_the_tests_that_read_pages(jobs: dict[str, dict[str, Any]]) -> None:
    skip = {name for name, job in jobs.items() if "irrelevant-files" in job}
    assert skip == {"novadocker-functional", "novadocker-devstack"}


def test_every_kind_of_tests_of_tox_has_a_job(jobs: dict[str, dict[str, Any]]) -> None:
    named = {job.get("vars", {}).get("tox_envlist") for job in jobs.values()}
    assert {"lint", "docs", "deployment"} <= named


def test_every_version_of_python_is_declared(jobs: dict[str, dict[str, Any]]) -> None:
    setup = (CHECKOUT / "setup.cfg").read_text()
    for job in jobs.values():
        if version := job.get("vars", {}).get("python_version"):
            assert f"Programming Language :: Python :: {version}\n" in setup


def test_every_playbook_runs_targets_that_exist(jobs: dict[str, dict[str, Any]]) -> None:
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY:((?:.*\\\n)*.*)", (CHECKOUT / "Makefile").read_text(), re.M)
    targets += phony.split()
    keys = ("pre-run", "run", "post-run")
    named = {job[key] for job in jobs.values() for key in keys if key in job}
    assert len(named) == 3
    for path in named:
        (play,) = yaml.safe_load((CHECKOUT / path).read_text())
        commands = [task.get("ansible.builtin.command", {}).get("cmd") for task in play["tasks"]]
        for command in filter(None, commands):
            program, *words = command.split()
            assert program == "make"
            assert set(words) <= set(targets)
