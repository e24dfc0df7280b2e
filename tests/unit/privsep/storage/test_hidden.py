# SPDX-License-Identifier: Apache-2.0
"""The servers that the engine hides because it has another storage driver."""

import json
from pathlib import Path

import pytest

from novadocker import naming, privsep
from novadocker.privsep.storage import hidden

UUIDS = [f"5f9f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c{number}" for number in (11, 12, 13)]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the privileged functions in this process."""
    monkeypatch.setattr(privsep.storage_pctxt, "client_mode", False)


def add(root: Path, number: int, driver: object, uuid: str, name: str = "") -> None:
    folder = root / "containers" / f"{number:064x}"
    folder.mkdir(parents=True)
    labels = {naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: uuid}
    found = {
        "Name": name or f"/{naming.container_name(uuid)}",
        "Driver": driver,
        "Config": {"Labels": labels},
    }
    (folder / "config.v2.json").write_text(json.dumps(found))


def test_servers_of_another_storage_driver(tmp_path: Path) -> None:
    add(tmp_path, 1, "overlay2", UUIDS[0])
    add(tmp_path, 2, "overlayfs", UUIDS[1])
    assert hidden.hidden_servers(str(tmp_path), "overlay2") == {UUIDS[1]: "overlayfs"}
    assert hidden.hidden_servers(str(tmp_path), "overlayfs") == {UUIDS[0]: "overlay2"}


def test_what_is_no_server_of_the_engine(tmp_path: Path) -> None:
    add(tmp_path, 1, "overlay2", UUIDS[0], name="/other")
    add(tmp_path, 2, 5, UUIDS[1])
    add(tmp_path, 3, "../x", UUIDS[2])
    (tmp_path / "containers" / "no-id").mkdir()
    damaged = tmp_path / "containers" / f"{4:064x}"
    damaged.mkdir()
    (damaged / "config.v2.json").write_text("{")
    (tmp_path / "containers" / f"{5:064x}").mkdir()
    assert hidden.hidden_servers(str(tmp_path), "overlayfs") == {}


@pytest.mark.parametrize("name", ["missing", ""])
def test_an_engine_without_containers(tmp_path: Path, name: str) -> None:
    assert hidden.hidden_servers(str(tmp_path / name), "overlay2") == {}
