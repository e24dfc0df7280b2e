# SPDX-License-Identifier: Apache-2.0
import errno
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from oslo_concurrency import processutils

from novadocker import privsep
from novadocker.linux import cgroup, device_filter
from novadocker.privsep.guest import runtime, volume_devices, volumes
from novadocker.privsep.guest.volume_devices import VolumeDevice

INSTANCE, VOLUME = str(uuid.uuid4()), str(uuid.uuid4())
CONTAINER, PID = "c" * 64, 77
DEVICE = VolumeDevice(VOLUME, "/dev/vdb", "/dev/loop7", 7, 7, True, False)


class Kernel:
    """Says what was done; ``fails`` is the step that the kernel refuses."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fails = ""

    def do(self, step: str) -> None:
        self.steps.append(step)
        if step == self.fails:
            self.fails = ""
            raise OSError(errno.EIO, step)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(privsep.volume_pctxt, "client_mode", False)
    monkeypatch.setattr(volume_devices, "FOLDER", tmp_path / "disks")
    monkeypatch.setattr(
        volumes, "_allow", lambda *arguments: made.do("allow" if arguments[-1] else "deny")
    )

    def in_container(container: str, pid: int, function: Any, device: VolumeDevice) -> None:
        made.do(function.__name__)

    def user_of(container: str, device: VolumeDevice) -> str:
        made.do("search")
        return ""

    monkeypatch.setattr(volumes, "_in_container", in_container)
    monkeypatch.setattr(volumes, "_user_of", user_of)
    monkeypatch.setattr(volume_devices, "link", lambda *_: made.do("link"))
    monkeypatch.setattr(volume_devices, "unlink", lambda *_: made.do("unlink"))
    volume_devices.write(INSTANCE, (DEVICE,))
    return made


@pytest.mark.parametrize(
    ("fails", "steps"),
    [
        ("", []),
        ("allow", ["deny"]),
        ("_put_node", ["deny"]),
        ("link", ["_remove_node", "deny"]),
    ],
)
def test_a_give_that_fails_leaves_nothing(kernel: Kernel, fails: str, steps: list[str]) -> None:
    kernel.fails = fails
    done = ["allow", "_put_node", "link"]
    if not fails:
        volumes.give(INSTANCE, VOLUME, CONTAINER, PID)
    else:
        with pytest.raises(OSError, match=fails):
            volumes.give(INSTANCE, VOLUME, CONTAINER, PID)
        done = done[: done.index(fails) + 1]
    assert kernel.steps == [*done, *steps]


@pytest.mark.parametrize("fails", ["deny", "search", "_remove_node", "unlink"])
def test_a_take_that_fails_leaves_the_server_its_access(kernel: Kernel, fails: str) -> None:
    kernel.fails = fails
    with pytest.raises(OSError, match=fails):
        volumes.take(INSTANCE, VOLUME, CONTAINER, PID)
    assert kernel.steps[-2:] == [fails, "allow"]


def test_a_take(kernel: Kernel) -> None:
    assert volumes.take(INSTANCE, VOLUME, CONTAINER, PID) == ""
    assert kernel.steps == ["deny", "search", "_remove_node", "unlink"]


def test_a_systemd_that_does_not_answer_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*command: str, timeout: int) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(processutils, "execute", execute)
    with pytest.raises(TimeoutError, match="systemd does not answer"):
        volumes._tell_systemd("docker-c.scope", DEVICE, True)


def test_the_lock_of_the_files_excludes_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_devices, "FOLDER", tmp_path / "run" / "disks")
    other = ["flock", "--nonblock", str(tmp_path / "run" / "disks.lock"), "true"]
    with volume_devices.locked():
        assert subprocess.run(other).returncode == 1
    assert subprocess.run(other).returncode == 0


@pytest.mark.parametrize("call", [volumes.release, volumes.forget, runtime.bind_container])
def test_each_process_locks_the_files(
    kernel: Kernel, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Locked(Exception):
        """The lock was taken."""

    def locked() -> None:
        raise Locked

    monkeypatch.setattr(volume_devices, "locked", locked)
    monkeypatch.setattr(privsep.network_pctxt, "client_mode", False)
    arguments = {
        volumes.release: (INSTANCE, VOLUME),
        volumes.forget: (INSTANCE,),
        runtime.bind_container: (CONTAINER, INSTANCE),
    }
    with pytest.raises(Locked):
        call(*arguments[call])


@pytest.mark.parametrize("version", [1, 2])
def test_systemd_denies_what_it_allowed(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload of systemd sets its rules anew."""
    told: list[str] = []
    scope = tmp_path / f"docker-{CONTAINER}.scope"
    scope.mkdir()
    groups = cgroup.Groups(version, {"devices" if version == 1 else "": scope})
    monkeypatch.setattr(cgroup, "groups", lambda *_: groups)
    monkeypatch.setattr(processutils, "execute", lambda *command, timeout: told.append(command[-1]))
    monkeypatch.setattr(volumes, "_started_rules", lambda _: [])
    monkeypatch.setattr(device_filter, "replace_program", lambda *_: None)
    volumes._allow(INSTANCE, CONTAINER, PID, DEVICE, True)
    volumes._allow(INSTANCE, CONTAINER, PID, DEVICE, False)
    assert told == ["DeviceAllow=/dev/block/7:7 rw", "DeviceAllow=/dev/block/7:7 m"]
