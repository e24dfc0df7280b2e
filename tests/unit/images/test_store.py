# SPDX-License-Identifier: Apache-2.0
"""Images from Glance to the engine, on fakes of both."""

import dataclasses
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from oslo_utils import timeutils

from novadocker import exception
from novadocker.virt.docker.images import store as images_store
from novadocker.virt.docker.images.platforms import host_platform
from novadocker.virt.docker.model import EngineImage, EngineInfo
from tests import archives
from tests.fake_glance import FakeGlance
from tests.unit.fakes import INFO

ID = "5f6a2bd0-7a64-4ed7-9f28-6a5a9a5e31c1"
OTHER_ID = "c0ffee00-7a64-4ed7-9f28-6a5a9a5e31c1"
LAYERS = [archives.tar({"etc/one": b"1"})]
ARCHIVE = archives.tar(archives.docker_files(archives.config(LAYERS), LAYERS))
LOADED = "sha256:" + archives.sha256(archives.config(LAYERS))


@dataclass
class FakeEngine:
    """A fake of the image requests of ``engine.Engine``; ``failing`` names requests to refuse."""

    failing: frozenset[str] = frozenset()
    tags: dict[str, str] = field(default_factory=dict)
    loads: int = 0
    named: list[str] = field(default_factory=list)
    named_at: datetime | None = None
    removed: list[str] = field(default_factory=list)
    storage_driver: str = "overlay2"
    unpacked: list[bytes] = field(default_factory=list)
    platform: str = ""
    size_bytes: int = 0

    def _refuse(self, request: str) -> None:
        if request in self.failing:
            raise exception.EngineError(operation=request, reason="refused")

    def info(self) -> EngineInfo:
        return dataclasses.replace(INFO, storage_driver=self.storage_driver)

    def inspect_image(self, name: str) -> EngineImage:
        if name not in self.tags:
            raise exception.EngineImageNotFound(operation="a look", reason=name)
        return EngineImage(
            id=self.tags[name],
            size_bytes=self.size_bytes,
            named_at=self.named_at,
            platform=self.platform,
        )

    def unpack_layer(self, chunks: Iterator[bytes], repository: str, tag: str) -> str:
        content = b"".join(chunks)
        self._refuse("layer")
        self.unpacked.append(content)
        self.tags[f"{repository}:{tag}"] = "sha256:layer"
        return archives.sha256(content)

    def load_image(self, chunks: Iterable[bytes]) -> str:
        assert sum(map(len, chunks)) % 512 == 0
        self.loads += 1
        self._refuse("load")
        return LOADED

    def layer_directories(self, _image: str, _author: str) -> tuple[str, ...]:
        return ()

    def tag_image(self, image_id: str, repository: str, tag: str) -> None:
        self._refuse("tag")
        self.named.append(f"{repository}:{tag}")
        self.tags[f"{repository}:{tag}"] = image_id

    def remove_image(self, name: str) -> None:
        self.removed.append(name)
        self.tags.pop(name, None)


@pytest.fixture
def fake_engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def folder(tmp_path: Path, options: Any) -> Path:
    found = tmp_path / "instances"
    options(instances_path=str(found))
    return found


@pytest.fixture
def store(
    fake_engine: FakeEngine, folder: Path, fake_glance: FakeGlance
) -> images_store.ImageStore:
    return images_store.ImageStore(fake_engine, "x86_64")  # type: ignore[arg-type]


def left_in(folder: Path) -> list[str]:
    """Return the names in a directory except for the lock files, which remain."""
    return [entry.name for entry in folder.iterdir() if entry.name != "locks"]


def test_loaded_once_under_the_name_of_glance(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance, folder: Path
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    assert store.ensure(None, meta).id == LOADED
    assert store.ensure(None, meta).id == LOADED
    assert fake_engine.tags == {f"novadocker/{ID}:{meta.checksum[:12]}": LOADED}
    assert (fake_glance.downloads, fake_engine.loads, fake_engine.removed) == ([ID], 1, [])
    assert left_in(folder) == []


def test_an_image_that_is_there_needs_no_glance(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    fake_glance.records.clear()
    fake_engine.tags[f"novadocker/{ID}:{meta.checksum[:12]}"] = "sha256:there"
    assert store.ensure(None, meta).id == "sha256:there"


@pytest.mark.parametrize(("age", "named"), [(None, 1), (5, 0), (3600, 1)])
def test_an_image_in_use_is_named_anew_but_not_for_each_of_many_boots(
    store: images_store.ImageStore,
    fake_engine: FakeEngine,
    fake_glance: FakeGlance,
    age: int | None,
    named: int,
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    fake_engine.tags[f"novadocker/{ID}:{meta.checksum[:12]}"] = "sha256:there"
    if age is not None:
        fake_engine.named_at = timeutils.utcnow() - timedelta(seconds=age)
    store.ensure(None, meta)
    assert len(fake_engine.named) == named


def test_the_name_is_the_same_without_the_checksum_in_novas_record(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    store.ensure(None, fake_glance.add(ID, ARCHIVE))
    bare = objects.ImageMeta.from_dict(
        {"id": ID, "container_format": "docker", "disk_format": "raw"}
    )
    store.ensure(None, bare)
    assert fake_engine.loads == 1


def test_the_hash_names_an_image_without_md5(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    store.ensure(None, fake_glance.add(ID, ARCHIVE, checksum=None))
    value = fake_glance.records[ID]["os_hash_value"]
    assert list(fake_engine.tags) == [f"novadocker/{ID}:{value[:12]}"]


def test_md5_is_enough_without_the_hash(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    nothing = {"os_hash_algo": None, "os_hash_value": None}
    store.ensure(None, fake_glance.add(ID, ARCHIVE, **nothing))
    assert fake_engine.loads == 1


@pytest.mark.parametrize(
    ("content", "changes", "reason"),
    [
        (ARCHIVE, {"container_format": "ovf"}, "container_format is ovf .* must be docker"),
        (ARCHIVE, {"disk_format": "qcow2"}, "disk_format qcow2; they must be .* and raw"),
        (ARCHIVE, {"disk_format": None}, "disk_format ; they must be .* and raw"),
        (b"#!/bin/sh\n" * 99, {"container_format": "bare"}, "it is not a tar archive"),
        (ARCHIVE, {"os_hash_algo": "sha0"}, "its checksum algorithm sha0 is not supported"),
        (ARCHIVE, {"checksum": None, "os_hash_value": None}, "Glance has no checksum"),
        (b"#!/bin/sh\n" * 99, {}, "it is not a tar archive"),
        (ARCHIVE[:2048], {}, "truncated|unexpected end"),
        (
            archives.tar(
                archives.docker_files(archives.config(LAYERS, architecture="arm64"), LAYERS)
            ),
            {},
            "it is for linux/arm64; this host runs linux/amd64",
        ),
    ],
)
def test_refused(
    store: images_store.ImageStore,
    fake_engine: FakeEngine,
    fake_glance: FakeGlance,
    folder: Path,
    content: bytes,
    changes: dict[str, Any],
    reason: str,
) -> None:
    meta = fake_glance.add(ID, content, **changes)
    with pytest.raises(exception.InvalidImage, match=reason) as raised:
        store.ensure(None, meta)
    assert ID in str(raised.value)
    assert (fake_engine.loads, fake_engine.tags) == (0, {})
    assert not folder.exists() or left_in(folder) == []


def test_an_image_for_newer_cpus_goes_to_another_host(
    store: images_store.ImageStore,
    fake_engine: FakeEngine,
    fake_glance: FakeGlance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "_platform", host_platform("amd64", ()))
    configuration = archives.config(LAYERS, variant="v3")
    meta = fake_glance.add(ID, archives.tar(archives.docker_files(configuration, LAYERS)))
    with pytest.raises(exception.UnfitHost, match="this host runs linux/amd64/v1") as raised:
        store.ensure(None, meta)
    # Nova's manager would end the build.
    assert not isinstance(raised.value, nova_exception.ImageUnacceptable)
    assert fake_engine.loads == 0


def test_a_host_that_can_not_verify_lets_another_try(
    store: images_store.ImageStore, fake_glance: FakeGlance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(*_: object) -> str:
        raise exception.VerificationFailed(name="web", reason="this host cannot run it")

    monkeypatch.setattr(images_store.registry, "pull", pull)
    monkeypatch.setattr(
        store, "_registries", images_store.registry.Registries(frozenset({"r.example"}))
    )
    meta = fake_glance.add(ID, b"", properties={"docker_image": "r.example/web"})
    with pytest.raises(exception.UnfitHost, match="this host cannot run it"):
        store.ensure(None, meta)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (
            exception.ImageTooLarge(name="web", size=1001, most=1000),
            r"to 1001 bytes or more, .* only 1000",
        ),
        (exception.PullCutOff(name="web", reason="no room here"), "booted: no room here"),
    ],
)
def test_an_image_of_a_registry_is_not_larger_than_the_root_disk(
    store: images_store.ImageStore,
    fake_glance: FakeGlance,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    text: str,
) -> None:
    def pull(*arguments: object) -> str:
        assert arguments[-1] == 1000
        raise failure

    monkeypatch.setattr(images_store.registry, "pull", pull)
    monkeypatch.setattr(
        store, "_registries", images_store.registry.Registries(frozenset({"r.example"}))
    )
    meta = fake_glance.add(ID, b"", properties={"docker_image": "r.example/web"})
    with pytest.raises(exception.InvalidImage, match=text):
        store.ensure(None, meta, most=1000)


def test_an_image_that_the_engine_has_is_not_larger_than_the_root_disk(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    fake_engine.size_bytes = 1001
    meta = fake_glance.add(ID, ARCHIVE)
    store.ensure(None, meta)
    with pytest.raises(exception.InvalidImage, match=r"to 1001 bytes or more, .* only 1000"):
        store.ensure(None, meta, most=1000)
    store.ensure(None, meta, most=1001)
    assert fake_engine.loads == 1


def test_ids_that_differ_in_letter_case_share_no_name(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    meta = fake_glance.add(ID.upper(), ARCHIVE)
    with pytest.raises(exception.InvalidImage, match="capital letters"):
        store.ensure(None, meta)


def test_novas_own_architecture_names(
    fake_engine: FakeEngine, fake_glance: FakeGlance, folder: Path
) -> None:
    content = archives.tar(
        archives.docker_files(archives.config(LAYERS, architecture="arm64"), LAYERS)
    )
    store = images_store.ImageStore(fake_engine, "aarch64")  # type: ignore[arg-type]
    store.ensure(None, fake_glance.add(ID, content))
    assert fake_engine.loads == 1


def test_errors_of_glance_stay_novas(
    store: images_store.ImageStore, fake_glance: FakeGlance, folder: Path
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    fake_glance.records.clear()
    with pytest.raises(nova_exception.ImageNotFound):
        store.ensure(None, meta)
    assert left_in(folder) == []


def test_a_load_that_the_engine_refuses(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance, folder: Path
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    fake_engine.failing = frozenset({"load"})
    with pytest.raises(exception.EngineError, match="refused load"):
        store.ensure(None, meta)
    assert (fake_engine.tags, left_in(folder)) == ({}, [])
    fake_engine.failing = frozenset()
    assert store.ensure(None, meta).id == LOADED


def test_a_load_that_gets_no_name_is_taken_back(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    fake_engine.failing = frozenset({"tag"})
    with pytest.raises(exception.EngineError, match="refused tag"):
        store.ensure(None, fake_glance.add(ID, ARCHIVE))
    assert fake_engine.removed == [LOADED]


def test_the_download_has_no_name_and_no_readers(
    store: images_store.ImageStore,
    fake_glance: FakeGlance,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    seen: list[int] = []

    def download(context: object, image_id: str, data: Any, trusted_certs: object) -> None:
        assert left_in(folder) == []
        seen.append(Path(f"/proc/self/fd/{data.fileno()}").stat().st_mode & 0o777)
        data.write(ARCHIVE)

    monkeypatch.setattr(fake_glance, "download", download)
    store.ensure(None, meta)
    assert seen == [0o600]


def test_eight_servers_at_once(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    all_missed = threading.Barrier(8, timeout=30)
    inspect, waited = fake_engine.inspect_image, threading.local()

    def inspect_together(name: str) -> EngineImage:
        # Every thread must find the image missing before the first thread may load it.
        if not hasattr(waited, "once"):
            waited.once = True
            all_missed.wait()
        return inspect(name)

    fake_engine.inspect_image = inspect_together  # type: ignore[method-assign]
    threads = [threading.Thread(target=store.ensure, args=(None, meta)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert (fake_glance.downloads, fake_engine.loads) == ([ID], 1)


def test_cached_once_and_marked_as_used(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    meta = fake_glance.add(ID, ARCHIVE)
    assert store.cache(None, ID) is True
    assert store.cache(None, ID) is False
    assert store.ensure(None, meta).id == LOADED
    assert fake_glance.downloads == [ID]
    # Each use tags the image again, which tells the cache the time of its last use.
    assert fake_engine.named == [f"novadocker/{ID}:{meta.checksum[:12]}"] * 3


def test_a_root_file_system(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    store.ensure(None, fake_glance.add(ID, LAYERS[0], container_format="bare"))
    assert fake_engine.loads == 1


def test_data_goes_before_a_registry(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance
) -> None:
    """A snapshot inherits the property of the image of its server."""
    reference = {"docker_image": "evil.example.com/a"}
    store.ensure(None, fake_glance.add(ID, ARCHIVE, properties=reference))
    assert fake_engine.loads == 1
    with pytest.raises(exception.InvalidImage, match="not allowed"):
        store.ensure(None, fake_glance.add(OTHER_ID, b"", properties=reference))


def test_an_image_that_unpacks_to_more_than_the_flavors_disk_is_refused(
    store: images_store.ImageStore, fake_engine: FakeEngine, fake_glance: FakeGlance, folder: Path
) -> None:
    layers = [archives.tar({"zeros": bytes(3 << 20)})]
    files = archives.docker_files(archives.config(layers), layers)
    meta = fake_glance.add(ID, archives.compress(archives.tar(files), "gzip"))
    text = r"cannot be booted: .* unpacks to \d+ bytes or more.* root disk has only 1048576"
    with pytest.raises(exception.InvalidImage, match=text):
        store.ensure(None, meta, most=1 << 20)
    assert (fake_engine.tags, left_in(folder)) == ({}, [])
    # A server with a larger disk boots it.
    store.ensure(None, meta, most=5 << 20)
    assert len(fake_engine.tags) == 1
