# SPDX-License-Identifier: Apache-2.0
"""Leftovers of deleted servers; the engine tests cover veth devices on a real kernel."""

import json
from pathlib import Path
from typing import Any

import pytest

from novadocker import naming
from novadocker.exporter import leaks
from novadocker.exporter.leaks import Found, Images, Search
from novadocker.exporter.metrics import leak_metrics
from novadocker.exporter.rendering import render
from novadocker.recovery.dataroot import RecoveryError
from tests.unit.exporter.test_exporter import CONTAINER, UUID, put, put_identity
from tests.unit.exporter.test_probes import answering

GONE = "99999999-2222-3333-4444-555555555555"
IMAGES = "data/image/overlay2"
SERVERS, NAMED, BASE, LOST = ("sha256:" + digit * 64 for digit in "1234")


def put_image(root: Path, image: str, parent: str = "") -> None:
    name = image.removeprefix("sha256:")
    put(root, {f"{IMAGES}/imagedb/content/sha256/{name}": "{}"})
    if parent:
        put(root, {f"{IMAGES}/imagedb/metadata/sha256/{name}/parent": parent})


def put_namespace(root: Path, uuid: str) -> None:
    put(root, {f"run/netns/nova-{uuid}": ""})
    status = (root / f"run/netns/nova-{uuid}").stat()
    put(root, {f"run/novadocker/networks/nova-{uuid}": f"{status.st_dev}:{status.st_ino}\n"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root of a host with one server, whose image is untagged and has a base image."""
    put_identity(tmp_path, CONTAINER)
    config = tmp_path / f"data/containers/{CONTAINER}/config.v2.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "Image": SERVERS}))
    put_namespace(tmp_path, UUID)
    put(tmp_path, {"run/netns/qdhcp-1": ""})
    put_image(tmp_path, SERVERS, BASE)
    put_image(tmp_path, BASE)
    put_image(tmp_path, NAMED)
    names = {"novadocker/7d": {"novadocker/7d:1": NAMED}, "other": {"other:1": NAMED}}
    put(tmp_path, {f"{IMAGES}/repositories.json": json.dumps({"Repositories": names})})
    return tmp_path


def look(root: Path) -> Found:
    return Search(root / "run", root / "data", root / "switch").look()


def test_nothing_is_left_where_all_is_well(root: Path) -> None:
    found = look(root)
    assert (found.leaked["namespace"], found.leaked["image"], found.unused_images) == (0, 0, 1)


def test_a_namespace_without_a_container_and_an_image_of_nobody(root: Path) -> None:
    put_namespace(root, GONE)
    put_image(root, LOST, BASE)
    found = look(root)
    assert (found.leaked["namespace"], found.leaked["image"]) == (1, 1)


def test_a_namespace_of_another_program_is_not_left_by_the_driver(root: Path) -> None:
    put(root, {f"run/netns/nova-{GONE}": ""})
    assert look(root).leaked["namespace"] == 0
    put_namespace(root, GONE)
    # Another program mounts its namespace where the driver's was.
    put(root, {"run/netns/other": ""})
    (root / "run/netns/other").rename(root / f"run/netns/nova-{GONE}")
    assert look(root).leaked["namespace"] == 0


def test_what_can_not_be_asked_is_left_out(root: Path) -> None:
    (root / IMAGES / "repositories.json").unlink()
    found = look(root)
    assert not {"port", "image"} & found.leaked.keys()
    assert found.unused_images is None
    with pytest.raises(RecoveryError):
        leaks.read_images(root / "data")


@pytest.mark.parametrize("stored", [["web"], {"web": "sha256:1"}])
def test_a_damaged_list_of_images_is_left_out(root: Path, stored: object) -> None:
    (root / IMAGES / "repositories.json").write_text(json.dumps({"Repositories": {"x": {}}}))
    assert "image" in look(root).leaked
    (root / IMAGES / "repositories.json").write_text(json.dumps({"Repositories": stored}))
    assert "image" not in look(root).leaked


def test_an_image_in_use_is_not_unused() -> None:
    images = Images({NAMED}, {f"{naming.IMAGES}7d:1": NAMED}, {})
    assert images.unused({NAMED}, naming.IMAGES) == 0
    assert images.unused(set(), naming.IMAGES) == 1


def interface(name: str, server: str | None, error: object) -> dict[str, Any]:
    pairs = [["vm-uuid", server]] if server else []
    return {"name": name, "external_ids": ["map", pairs], "error": error}


@pytest.mark.parametrize(
    ("row", "left"),
    [
        (interface("tap1", UUID, ["set", []]), False),
        (interface("tap1", UUID, "could not open network device"), False),
        (interface("tap2", GONE, "could not open network device"), True),
        (interface("tap3", GONE, ["set", []]), True),
        # This port belongs to a virtual machine.
        (interface("tap4", GONE, ["set", []]), False),
        (interface("tap3", None, ["set", []]), False),
    ],
)
def test_ports_of_servers_that_are_gone(tmp_path: Path, row: dict[str, Any], left: bool) -> None:
    answer = json.dumps({"id": 0, "error": None, "result": [{"rows": [row]}]})
    with answering(tmp_path / "db.sock", answer.encode()):
        assert leaks.ports_without_server(tmp_path, {UUID}, {"tap3"}) == left


@pytest.mark.parametrize("result", [None, [], [{}], [{"rows": [{}]}], [{"rows": [{"name": 1}]}]])
def test_a_switch_that_talks_nonsense(tmp_path: Path, result: object) -> None:
    answer = json.dumps({"id": 0, "error": None, "result": result})
    with (
        answering(tmp_path / "db.sock", answer.encode()),
        pytest.raises((OSError, ValueError), match="database sent a malformed answer"),
    ):
        leaks.ports_without_server(tmp_path, set(), set())


def test_the_metric_names_the_kind() -> None:
    text = render(leak_metrics(Found({"veth": 2}, 3))).decode()
    assert 'novadocker_host_leaked_objects{kind="veth"} 2' in text
    assert "novadocker_host_unused_images 3" in text
