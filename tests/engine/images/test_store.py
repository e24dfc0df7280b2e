# SPDX-License-Identifier: Apache-2.0
"""Images from Glance in a real engine: the engine's images afterwards, and containers of them."""

import json
import multiprocessing
import os
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from nova import conf, objects
from nova import context as nova_context

from novadocker import exception
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import store as images_store
from tests import archives, signed_images
from tests.engine import image_processes, machines
from tests.engine.busybox import busybox_archive
from tests.fake_glance import FakeGlance
from tests.waiting import until

BUILDERS = {"docker": archives.docker_files, "oci": archives.oci_files}
LARGE_BYTES = 512 << 20

Upload = Callable[..., objects.ImageMeta]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "instances"
    conf.CONF.set_override("instances_path", str(found))
    yield found
    conf.CONF.clear_override("instances_path")
    assert [entry.name for entry in found.iterdir()] == ["locks"]


@pytest.fixture
def upload(fake_glance: FakeGlance) -> Upload:
    return lambda content: fake_glance.add(str(uuid.uuid4()), content)


@pytest.fixture
def store(
    engine_url: str, folder: Path, fake_glance: FakeGlance, docker_client: docker.APIClient
) -> Iterator[images_store.ImageStore]:
    before = tags(docker_client)
    yield image_processes.new_store(engine_url)
    for tag in tags(docker_client).keys() - before.keys():
        docker_client.remove_image(tag, force=True)
    assert tags(docker_client) == before


@contextmanager
def glance_at(url: str) -> Iterator[None]:
    """Make Nova's client use a Glance that has signed images."""
    options = {"api_servers": [url], "num_retries": 0, "verify_glance_signatures": True}
    for name, value in options.items():
        conf.CONF.set_override(name, value, group="glance")
    yield
    for name in options:
        conf.CONF.clear_override(name, group="glance")


def tags(client: docker.APIClient) -> dict[str, str]:
    """Return all image names in the engine, with the id of each name's image."""
    return {tag: image["Id"] for image in client.images() for tag in image["RepoTags"] or ()}


def image_of(marker: str, client: docker.APIClient) -> tuple[bytes, list[bytes]]:
    """Return an image that prints its marker, with a new layer that the engine must read."""
    layers = [busybox_archive(), archives.tar({"marker": f"{marker}\n".encode()})]
    architecture = client.version()["Arch"]
    command = {"Cmd": ["cat", "/marker"], "Env": ["PATH=/bin"]}
    return archives.config(layers, config=command, architecture=architecture), layers


def run(client: docker.APIClient, image_id: str) -> str:
    """Return the output of a container of the image."""
    host = client.create_host_config(network_mode="none")
    container = client.create_container(image_id, host_config=host)
    try:
        client.start(container)
        assert client.wait(container, timeout=30)["StatusCode"] == 0
        return client.logs(container).decode().strip()
    finally:
        client.remove_container(container, force=True)


@pytest.mark.parametrize("compression", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_a_container_runs_of_each_format(
    store: images_store.ImageStore,
    upload: Upload,
    docker_client: docker.APIClient,
    kind: str,
    compression: str,
) -> None:
    marker = uuid.uuid4().hex
    configuration, layers = image_of(marker, docker_client)
    files = BUILDERS[kind](configuration, layers, compression=compression)
    meta = upload(archives.compress(archives.tar(files), compression))
    image = store.ensure(None, meta)
    assert image.id == f"sha256:{archives.sha256(configuration)}"
    assert image.command == ("cat", "/marker")
    assert tags(docker_client)[f"novadocker/{meta.id}:{meta.checksum[:12]}"] == image.id
    assert run(docker_client, image.id) == marker


@pytest.mark.parametrize("builder", archives.OTHER_BUILDERS)
def test_a_container_runs_of_each_builder(
    store: images_store.ImageStore,
    upload: Upload,
    docker_client: docker.APIClient,
    builder: str,
) -> None:
    marker = uuid.uuid4().hex
    configuration, layers = image_of(marker, docker_client)
    meta = upload(archives.OTHER_BUILDERS[builder](configuration, layers))
    assert run(docker_client, store.ensure(None, meta).id) == marker


def test_what_docker_and_skopeo_write(
    store: images_store.ImageStore,
    upload: Upload,
    docker_client: docker.APIClient,
    busybox_image: str,
    tmp_path: Path,
) -> None:
    original = docker_client.inspect_image(busybox_image)["Id"]
    saved = tmp_path / "saved.tar"
    saved.write_bytes(b"".join(docker_client.get_image(busybox_image)))
    assert store.ensure(None, upload(saved)).id == original
    converted = tmp_path / "converted.tar"
    subprocess.run(
        ["skopeo", "copy", "--quiet", f"docker-archive:{saved}", f"oci-archive:{converted}:a:b"],
        check=True,
    )
    # skopeo writes another configuration for an OCI archive, so the image id differs too.
    image = store.ensure(None, upload(converted))
    assert len(tags(docker_client)) >= 3
    host = docker_client.create_host_config(network_mode="none")
    container = docker_client.create_container(image.id, "true", host_config=host)
    docker_client.start(container)
    assert docker_client.wait(container, timeout=30)["StatusCode"] == 0


@pytest.mark.parametrize("kind", BUILDERS)
def test_names_in_an_archive_take_no_effect(
    store: images_store.ImageStore,
    upload: Upload,
    docker_client: docker.APIClient,
    busybox_image: str,
    kind: str,
) -> None:
    victim = upload(archives.tar(archives.docker_files(*image_of("victim", docker_client))))
    victims = store.ensure(None, victim)
    victims_tag = f"novadocker/{victim.id}:{victim.checksum[:12]}"
    before = tags(docker_client)
    targets = [victims_tag, busybox_image, "novadocker/new:1", "evil:latest"]
    evil = archives.tar(BUILDERS[kind](*image_of("evil", docker_client), tags=targets))
    attack = upload(evil)
    attackers = store.ensure(None, attack)
    assert attackers.id != victims.id
    own = {f"novadocker/{attack.id}:{attack.checksum[:12]}": attackers.id}
    assert tags(docker_client) == before | own
    assert run(docker_client, store.ensure(None, victim).id) == "victim"


def test_the_engine_alone_would_move_the_names(docker_client: docker.APIClient) -> None:
    """The attack of the test before works on an unprotected engine."""
    for marker in ("victim", "evil"):
        content = archives.docker_files(*image_of(marker, docker_client), tags=["prey:1"])
        list(docker_client.load_image(archives.tar(content)))
        loaded = docker_client.inspect_image("prey:1")["Id"]
        assert run(docker_client, loaded) == marker
    for image in docker_client.images("prey") + docker_client.images(filters={"dangling": True}):
        docker_client.remove_image(image["Id"], force=True)


def test_layers_of_others_can_not_be_had_by_their_digests(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    configuration, layers = image_of("secret", docker_client)
    store.ensure(None, upload(archives.tar(archives.docker_files(configuration, layers))))
    before = tags(docker_client)
    thief = json.loads(configuration) | {"created": "2020-01-01T00:00:00Z"}
    stolen = upload(archives.tar(archives.docker_files(archives.dump(thief), [b"", b""])))
    with pytest.raises(exception.InvalidImage, match="layer 1 does not match its digest"):
        store.ensure(None, stolen)
    assert tags(docker_client) == before


def test_two_ids_with_the_same_content(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    content = archives.tar(archives.docker_files(*image_of("same", docker_client)))
    first, second = upload(content), upload(content)
    assert store.ensure(None, first).id == store.ensure(None, second).id
    names = {f"novadocker/{meta.id}:{meta.checksum[:12]}" for meta in (first, second)}
    assert names <= tags(docker_client).keys()


def test_what_the_engine_refuses_leaves_nothing(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    """The layer's digest is right, but its content ends in the middle of a file."""
    architecture = docker_client.version()["Arch"]
    layers = [archives.tar({"large": b"x" * 5000})[:2000]]
    configuration = archives.config(layers, architecture=architecture)
    before = docker_client.images(all=True)
    with pytest.raises(exception.EngineError, match="unexpected EOF"):
        store.ensure(None, upload(archives.tar(archives.docker_files(configuration, layers))))
    assert docker_client.images(all=True) == before


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_signature(
    engine_url: str,
    folder: Path,
    docker_client: docker.APIClient,
    monkeypatch: pytest.MonkeyPatch,
    right: bool,
) -> None:
    """Nova's own client downloads the image, so the engine gets most of it before the verdict."""
    keys = signed_images.KeyManager()
    monkeypatch.setattr("cursive.signature_utils.key_manager.API", lambda: keys)
    content = archives.tar(archives.docker_files(*image_of("signed", docker_client)))
    properties = keys.issue("signer").sign(content if right else content + b"x")
    before = docker_client.images(all=True)
    with signed_images.served(content, properties) as image, glance_at(image.url):
        store = image_processes.new_store(engine_url)
        # An administrator's context reads no policy file, which needs the whole configuration.
        context = nova_context.RequestContext("user", "p1", is_admin=True, auth_token="token")
        if right:
            loaded = store.ensure(context, image.meta)
            assert run(docker_client, loaded.id) == "signed"
            docker_client.remove_image(f"{image.name}-signed")
        else:
            with pytest.raises(exception.InvalidImage, match="does not match its signature"):
                store.ensure(context, image.meta)
    assert docker_client.images(all=True) == before


OUTSIDE = "novadocker-test-outside"


@pytest.mark.parametrize(
    "entries",
    [
        [archives.entry(f"../../../../../../../../{OUTSIDE}", b"x")],
        [archives.entry(f"/{OUTSIDE}", b"x")],
        [archives.entry("way", type=b"2", linkname="/"), archives.entry(f"way/{OUTSIDE}", b"x")],
        [
            archives.entry("way", type=b"2", linkname="../../../../../../.."),
            archives.entry(f"way/{OUTSIDE}", b"x"),
        ],
        [archives.entry("stolen", type=b"1", linkname="../../../../../../../../bin/sh")],
        [archives.entry("stolen", type=b"1", linkname="/proc/self/environ")],
    ],
    ids=["traversal", "absolute", "link", "relative link", "hard link", "absolute hard link"],
)
def test_a_layer_stays_within_its_image(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient, entries: Any
) -> None:
    layers = [busybox_archive(), archives.tar_of(entries)]
    architecture = docker_client.version()["Arch"]
    configuration = archives.config(layers, config={"Cmd": ["ls", "/"]}, architecture=architecture)
    content = archives.tar(archives.docker_files(configuration, layers))
    before = docker_client.images(all=True)
    # Engine 20.10 refuses hard links only, newer engines all entries that lead outside.
    refusal = ""
    try:
        image = store.ensure(None, upload(content))
    except exception.EngineError as error:
        refusal = str(error)
    if refusal:
        assert re.search("no such file|not a valid archive", refusal)
        assert docker_client.images(all=True) == before
    else:
        assert not any(found.islnk() for found, _ in entries)
        assert OUTSIDE in run(docker_client, image.id)
    assert not Path("/", OUTSIDE).exists()


def test_a_layer_listed_twice(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    marker = uuid.uuid4().hex
    _, (base, layer) = image_of(marker, docker_client)
    layers = [base, layer, layer]
    command = {"Cmd": ["cat", "/marker"]}
    architecture = docker_client.version()["Arch"]
    configuration = archives.config(layers, config=command, architecture=architecture)
    files = archives.docker_files(configuration, layers)
    image = store.ensure(None, upload(archives.tar(files)))
    assert run(docker_client, image.id) == marker


def test_a_bad_layer_that_was_sent_on_early_leaves_nothing(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    layers = [archives.tar({"large": bytes(4 << 20)})]
    architecture = docker_client.version()["Arch"]
    files = archives.docker_files(archives.config(layers, architecture=architecture), layers)
    (name,) = (name for name, content in files.items() if content == layers[0])
    before = docker_client.images(all=True)
    scratch = Path(docker_client.info()["DockerRootDir"], "tmp")
    # An engine that was killed may have left files there.
    scratched = set(scratch.iterdir())
    with pytest.raises(exception.InvalidImage, match="layer 1 does not match its digest"):
        store.ensure(None, upload(archives.tar(files | {name: layers[0][:-1] + b"x"})))
    assert docker_client.images(all=True) == before
    # The engine detects the end of its connection asynchronously.
    until(lambda: set(scratch.iterdir()) <= scratched)


def large_image(marker: str, client: docker.APIClient) -> tuple[bytes, list[bytes]]:
    """Return an image that prints its marker; its lowest layer is new, and large."""
    files = {"marker": f"{marker}\n".encode(), "large": os.urandom(2 << 20)}
    layers = [archives.tar(files), busybox_archive()]
    command = {"Cmd": ["cat", "/marker"], "Env": ["PATH=/bin"]}
    architecture = client.version()["Arch"]
    return archives.config(layers, config=command, architecture=architecture), layers


def test_the_engine_unpacks_the_lowest_layer_while_it_arrives(
    store: images_store.ImageStore,
    upload: Upload,
    docker_client: docker.APIClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = uuid.uuid4().hex
    configuration, layers = large_image(marker, docker_client)
    unpacked: list[str] = []
    unpack = Engine.unpack_layer

    def seen(engine: Engine, chunks: Iterator[bytes], repository: str, tag: str) -> str:
        unpacked.append(unpack(engine, chunks, repository, tag))
        return unpacked[-1]

    monkeypatch.setattr(Engine, "unpack_layer", seen)
    before = tags(docker_client)
    meta = upload(archives.tar(archives.docker_files(configuration, layers)))
    image = store.ensure(None, meta)
    assert unpacked == [archives.sha256(layers[0])]
    assert image.id == f"sha256:{archives.sha256(configuration)}"
    assert tags(docker_client) == before | {f"novadocker/{meta.id}:{meta.checksum[:12]}": image.id}
    assert docker_client.images(filters={"dangling": True}) == []
    assert run(docker_client, image.id) == marker


def test_a_lowest_layer_that_is_taken_back_leaves_another_image_alone(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    """The good image contains the bad image's first layer."""
    marker = uuid.uuid4().hex
    configuration, layers = large_image(marker, docker_client)
    good = store.ensure(None, upload(archives.tar(archives.docker_files(configuration, layers))))
    files = archives.docker_files(configuration, [layers[0], archives.tar({"other": b""})])
    before = docker_client.images(all=True)
    with pytest.raises(exception.InvalidImage, match="layer 2 does not match its digest"):
        store.ensure(None, upload(archives.tar(files)))
    assert docker_client.images(all=True) == before
    assert run(docker_client, good.id) == marker


def test_what_a_killed_load_left_is_replaced(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient, engine: Engine
) -> None:
    marker = uuid.uuid4().hex
    configuration, layers = large_image(marker, docker_client)
    meta = upload(archives.tar(archives.docker_files(configuration, layers)))
    engine.unpack_layer(iter([archives.tar({"left": b""})]), f"novadocker/{meta.id}", "arriving")
    image = store.ensure(None, meta)
    assert not any(tag.endswith(":arriving") for tag in tags(docker_client))
    assert docker_client.images(filters={"dangling": True}) == []
    assert run(docker_client, image.id) == marker


def test_holes_do_not_become_zeros_on_the_hosts_disk(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    """The engine would write the header's number of zeros while the layer arrives."""
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999"}
    zeros = archives.entry("zeros", b"1\n99999999\n0\n".ljust(512, b"\0"), pax_headers=records)
    layers = [archives.tar_of([archives.entry("large", os.urandom(2 << 20)), zeros])]
    configuration = archives.config(layers, architecture=docker_client.version()["Arch"])
    before = docker_client.images(all=True)
    with pytest.raises(exception.InvalidImage, match="a layer has a sparse file"):
        store.ensure(None, upload(archives.tar(archives.docker_files(configuration, layers))))
    assert docker_client.images(all=True) == before
    # An unprotected engine does write the zeros.
    content = archives.tar(archives.docker_files(configuration, layers, tags=["sparse:1"]))
    list(docker_client.load_image(content))
    assert docker_client.inspect_image("sparse:1")["Size"] > 99999999
    docker_client.remove_image("sparse:1")


def test_a_file_that_is_no_layer_although_it_looks_like_one(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient
) -> None:
    """The engine refuses the first file, which the image does not need."""
    marker = uuid.uuid4().hex
    configuration, layers = large_image(marker, docker_client)
    broken = archives.tar({"broken": b"1" * (2 << 20)})[: 1 << 20]
    files = {"first.tar": broken, **archives.docker_files(configuration, layers)}
    image = store.ensure(None, upload(archives.tar(files)))
    assert run(docker_client, image.id) == marker


def test_a_disk_of_the_host_in_an_image(
    store: images_store.ImageStore, upload: Upload, docker_client: docker.APIClient, engine: Engine
) -> None:
    disk = os.stat("/").st_dev
    node = archives.entry(
        "disk", type=b"4", mode=0o666, devmajor=os.major(disk), devminor=os.minor(disk)
    )
    layers = [busybox_archive(), archives.tar_of([node])]
    configuration = archives.config(layers, architecture=docker_client.version()["Arch"])
    image = store.ensure(None, upload(archives.tar(archives.docker_files(configuration, layers))))
    with machines.machine(engine, docker_client, image.id) as guest:
        code, output = guest.shell("ls -l /disk; head -c 1 /disk", user="0")
    assert code != 0
    assert "brw-rw-rw-" in output
    assert "Operation not permitted" in output


# -- concurrent and large images, in their own processes ---------------------------------------


def in_processes(number: int, target: Callable[..., None], *arguments: Any) -> list[Any]:
    """Run a function concurrently in new processes; return the value that each sends."""
    context = multiprocessing.get_context("spawn")
    readers, processes = [], []
    for _ in range(number):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(*arguments, writer), daemon=True)
        process.start()
        # With the writer closed here, the end of the process ends the pipe.
        writer.close()
        readers.append(reader)
        processes.append(process)
    try:
        assert all(reader.poll(timeout=180) for reader in readers)
        return [reader.recv() for reader in readers]
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def test_sixteen_servers_of_two_processes_load_once(
    store: images_store.ImageStore,
    upload: Upload,
    fake_glance: FakeGlance,
    folder: Path,
    engine_url: str,
    docker_client: docker.APIClient,
) -> None:
    configuration, layers = image_of(uuid.uuid4().hex, docker_client)
    meta = upload(archives.tar(archives.docker_files(configuration, layers)))
    barrier = multiprocessing.get_context("spawn").Barrier(16)
    found = in_processes(2, image_processes.boot_many, engine_url, folder, fake_glance, barrier)
    assert found == [[f"sha256:{archives.sha256(configuration)}"] * 8] * 2
    assert fake_glance.downloads == [meta.id]


def test_memory_does_not_grow_with_the_image(
    store: images_store.ImageStore,
    upload: Upload,
    fake_glance: FakeGlance,
    folder: Path,
    engine_url: str,
    docker_client: docker.APIClient,
    tmp_path: Path,
) -> None:
    upload(write_large_archive(tmp_path, docker_client.version()["Arch"]))
    (growth,) = in_processes(1, image_processes.load_large, engine_url, folder, fake_glance)
    assert growth < 64 << 20


def write_large_archive(folder: Path, architecture: str) -> Path:
    """Write an archive of one layer with one file of zeros; the file has holes, so it is fast."""
    layer, path = folder / "layer", folder / "large.tar"
    with layer.open("wb") as file:
        file.write(archives.entry("zeros", size=LARGE_BYTES)[0].tobuf())
        file.truncate(512 + LARGE_BYTES + 1024)
    digest = file_sha256(layer)
    configuration = archives.config(
        [], architecture=architecture, rootfs={"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    )
    manifest = archives.dump([{"Config": "config.json", "Layers": ["layer.tar"]}])
    small = archives.tar({"config.json": configuration, "manifest.json": manifest})
    with path.open("wb") as file:
        file.write(archives.entry("layer.tar", size=layer.stat().st_size)[0].tobuf())
        file.write(archives.entry("zeros", size=LARGE_BYTES)[0].tobuf())
        file.seek(512 + layer.stat().st_size)
        file.write(small)
    layer.unlink()
    return path


def file_sha256(path: Path) -> str:
    done = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]
