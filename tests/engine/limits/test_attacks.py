# SPDX-License-Identifier: Apache-2.0
"""Attempts of a server's root to leave its server, and the answers to them."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from novadocker.virt.docker.engine.client import Engine
from tests import CHECKOUT
from tests.engine import attacks, machines, namespaced
from tests.engine.engines import OwnEngine
from tests.engine.machines import Machine
from tests.engine.remapping import remapped_engine

_NOBODY = 65534


@dataclass(frozen=True)
class Attacker:
    """A server whose root belongs to the attacker.

    :ivar first_id: the id on the host of the server's root
    """

    machine: Machine
    first_id: int


@pytest.fixture(scope="module", params=["ids of the host", "own ids", "userns-remap"])
def attacker(
    request: pytest.FixtureRequest, session_engine: OwnEngine, privileged: None, state_folder: Path
) -> Iterator[Attacker]:
    with contextlib.ExitStack() as opened:
        outer = session_engine
        if request.param == "userns-remap":
            outer = opened.enter_context(remapped_engine(state_folder, "attacked"))
        client = opened.enter_context(machines.connected(outer.url))
        if request.param == "ids of the host":
            engine = Engine(outer.url, timeout=30, load_timeout=60)
            found = opened.enter_context(machines.machine(engine, client))
        else:
            mark = (state_folder / "mark").read_text()
            instance_uuid = f"{mark}-0000-4000-8000-000000000002"
            found = opened.enter_context(
                namespaced.server(outer, client, instance_uuid, machines.describe(instance_uuid))
            )
        first = int(Path(f"/proc/{found.pid}/uid_map").read_text().split()[1])
        assert (first == 0) is (request.param == "ids of the host")
        yield Attacker(found, first)


def test_every_attempt_fails(attacker: Attacker) -> None:
    assert attacks.wrong_answers(attacker.machine.run, os.getpid()) == {}


def test_a_planted_setuid_program_serves_no_user_of_the_host(attacker: Attacker) -> None:
    machine = attacker.machine
    plant = "cp /bin/busybox /tmp/planted && chmod 4755 /tmp/planted && ls -l /tmp/planted"
    code, output = machine.shell(plant)
    assert (code, output[:10]) == (0, "-rwsr-xr-x")
    layers = machine.client.inspect_container(machine.id)["GraphDriver"]["Data"]
    places = [layers["UpperDir"], f"/proc/{machine.pid}/root"]
    for place in places:
        path = Path(place, "tmp/planted")
        assert path.exists()
        with pytest.raises(PermissionError):
            subprocess.run([path, "id"], check=True, user=_NOBODY, group=_NOBODY, extra_groups=[])


def test_the_attempts_are_documented() -> None:
    documented = (CHECKOUT / "docs" / "security.rst").read_text()
    for subject in {attempt.subject for attempt in attacks.ATTEMPTS}:
        assert f"   * - {subject}\n" in documented
