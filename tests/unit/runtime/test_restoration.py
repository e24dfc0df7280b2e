# SPDX-License-Identifier: Apache-2.0
"""Restores of containers by the runtime shim, with a runc that only records its arguments."""

import json
import os
import posix
from pathlib import Path
from typing import Any

import pytest

from novadocker.runtime import record, restoration, tree
from tests.unit.runtime.test_runtime_shim import ID, UUID, Shim, shim

__all__ = ["shim"]

OTHER = "f" * 64
RESTORE = {"images": f"{record.CHECKPOINTS}/host1/{UUID}/{ID}", "criu": "/usr/sbin"}


def content(restore: object, name: str = f"nova-{UUID}") -> bytes:
    namespaces = {"network": f"/run/netns/{name}"}
    return json.dumps({"version": 1, "namespaces": namespaces, "restore": restore}).encode()


def test_the_record_is_what_the_driver_writes() -> None:
    found = record.parse(content(RESTORE))
    assert found.restore is not None
    assert (vars(found.restore), found.restore.container_id) == (RESTORE, ID)
    again = record.parse(record.serialize(found)).restore
    assert again is not None
    assert vars(again) == RESTORE


@pytest.mark.parametrize(
    "restore",
    [
        None,
        {},
        {**RESTORE, "more": 1},
        *(
            {**RESTORE, "images": images}
            for images in (
                5,
                "/etc",
                f"{record.CHECKPOINTS}/host1/{UUID}/{ID}/more",
                f"{record.CHECKPOINTS}/{UUID}/{ID}",
                f"{record.CHECKPOINTS}/../{UUID}/{ID}",
                f"{record.CHECKPOINTS}//{UUID}/{ID}",
                f"{record.CHECKPOINTS}/host1/../{ID}",
                f"{record.CHECKPOINTS}/host1/{UUID}/{ID[1:]}",
                f"{record.CHECKPOINTS}/host1/{UUID}/..",
            )
        ),
        *({**RESTORE, "criu": criu} for criu in (5, "", "sbin", "/opt/../sbin", "/a:/b")),
    ],
)
def test_malformed_restores(restore: object) -> None:
    with pytest.raises(ValueError, match="has a malformed restore"):
        record.parse(content(restore))


def test_the_memory_of_another_server_is_refused() -> None:
    with pytest.raises(ValueError, match="another server"):
        record.parse(content(RESTORE, f"nova-{UUID[:-1]}2"))


def test_words() -> None:
    given = ["--root", "/r", "create", "--bundle", "/b", ID]
    assert restoration.words(given, "/i") == [
        *("--root", "/r", "restore", "--detach", "--tcp-established", "--file-locks"),
        *("--ext-unix-sk", "--image-path", "/i", "--work-path", "/i", "--bundle", "/b", ID),
    ]


class Images:
    """The images of the shim's container, and a runc that restores them."""

    def __init__(self, shim: Shim, status: int = 0, container: str = ID) -> None:
        self.shim = shim
        self.folder = shim.folder / "checkpoints" / "host1" / UUID / container
        self.used = self.folder.with_name(f"{container}.used")
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o700)
        (self.folder / "restore.log").write_text("(0.1) Error (cr.c:1): first\nError (cr.c:2): x\n")
        self.mark = shim.records / f"{ID}.restored"
        self.record = shim.records / ID
        found = json.loads(shim.record())
        found["restore"] = {"images": str(self.folder), "criu": str(shim.folder / "criu")}
        self.record.write_text(json.dumps(found))
        runc = shim.folder / "bin" / "runc"
        runc.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@"\necho "$PATH" >{shim.folder}/path\n'
            "for fd in 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$fd ] || echo open $fd; done\n"
            f"cat {self.record} >{shim.folder}/during\nexit {status}\n"
        )

    def during(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.shim.folder / "during").read_text())
        return found


def test_a_container_is_restored_once(shim: Shim) -> None:
    images = Images(shim)
    result = shim.create()
    assert (result.returncode, result.stderr) == (0, "")
    shown = result.stdout.split("\n")
    assert shown[6:8] == ["--systemd-cgroup", "restore"]
    assert shown[shown.index("--image-path") + 1] == str(images.used)
    assert (shim.folder / "path").read_text().startswith(f"{shim.folder}/criu:")
    # The server would inherit further descriptors.
    assert not [word for word in shown if word.startswith("open")]
    # If the shim dies now, the next start does not restore.
    assert "restore" not in images.during()
    assert images.used.exists()
    assert not images.folder.exists()
    assert shim.whole_config["annotations"]["org.criu.config"].endswith("/runtime/criu.conf")

    # The process runs already.
    started = shim.run("--root", "/run/x", "start", ID)
    assert (started.returncode, started.stdout) == (0, "")
    assert not images.mark.exists()
    assert shim.run("start", ID).stdout == f"start\n{ID}\n"
    shim.write_config()
    assert "create" in shim.create().stdout.split("\n")


def test_a_restore_that_fails_keeps_the_images(shim: Shim) -> None:
    images = Images(shim, status=1)
    result = shim.create()
    assert result.returncode == 1
    message = json.loads(shim.log.read_text().splitlines()[-1])["msg"]
    assert message == (
        f"novadocker: the memory of container {ID} can't be restored: (0.1) Error (cr.c:1): first"
    )
    assert images.folder.exists()
    assert not images.used.exists()
    assert not images.mark.exists()
    assert "restore" not in json.loads(images.record.read_text())


@pytest.mark.parametrize("status", [0, 1])
def test_a_power_loss_brings_no_used_images_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    images = tmp_path / "images" / ID
    images.mkdir(parents=True, mode=0o700)
    records = os.open(tmp_path, os.O_PATH)
    shown: list[list[str]] = []

    def synced(descriptor: int) -> None:
        shown.append(os.listdir(descriptor))

    def run(*_: object) -> int:
        shown.append(["runc"])
        return status

    monkeypatch.setattr(posix, "fsync", synced)
    monkeypatch.setattr(restoration, "_run", run)
    wanted = record.Restore(str(images), "/usr/sbin")
    try:
        restoration.restore(ID, wanted, content(RESTORE), records, ["create", ID])
    except tree.Fault:
        assert status
    finally:
        os.close(records)
    assert shown == [[f"{ID}.used"], ["runc"], *([[ID]] if status else [])]


@pytest.mark.parametrize("wrong", ["mode", "file", "none", "container"])
def test_images_that_are_not_roots_own_are_refused(shim: Shim, wrong: str) -> None:
    images = Images(shim, container=OTHER if wrong == "container" else ID)
    if wrong == "mode":
        images.folder.chmod(0o755)
    elif wrong != "container":
        images.folder.rename(images.folder.with_name("elsewhere"))
        if wrong == "file":
            images.folder.touch()
    message = shim.refusal(shim.create())
    assert "memory of" in message
    assert not (shim.folder / "path").exists()


def test_a_mark_of_an_earlier_restore_does_not_keep_a_start(shim: Shim) -> None:
    mark = shim.records / f"{ID}.restored"
    mark.touch()
    assert shim.create().returncode == 0
    assert not mark.exists()


def test_a_server_in_a_user_namespace_is_not_restored(shim: Shim) -> None:
    images = Images(shim)
    spaces = [{"type": "network"}, {"type": "user"}]
    shim.write_config(linux={"namespaces": spaces})
    shim.refusal(shim.create())
    assert images.folder.exists()


def test_the_settings_of_criu_are_installed() -> None:
    assert Path(restoration.__file__).with_name("criu.conf").exists()
