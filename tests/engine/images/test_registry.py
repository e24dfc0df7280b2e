# SPDX-License-Identifier: Apache-2.0
"""A real engine and hostile registries, which are small HTTP servers of the tests."""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import docker
import pytest
from nova import conf

from novadocker import exception
from novadocker.linux import space
from novadocker.virt.docker.engine import aftermath, pull_bounds
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.pull_bounds import PullBounds
from novadocker.virt.docker.images import store as images_store
from tests import archives, https
from tests.engine import engines
from tests.engine.engines import OwnEngine
from tests.engine.images.test_store import folder, image_of, run, tags
from tests.fake_glance import FakeGlance
from tests.https import Answer, reply

__all__ = ["folder"]

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
SECRET = "ami-id-of-the-host"
# The timeout of a registry for each request of the engine.
SECONDS = 6
# An address for documentation, RFC 5737.
WARY = "192.0.2.1"
CERTIFICATES = Path("/etc/docker/certs.d")
# It is compressed to 64 KiB.
ZEROS = archives.tar({"zeros": bytes(64 << 20)})


@contextmanager
def served(answer: Answer, certificate: Path | None = None) -> Iterator[str]:
    """Serve HTTP on an address that engines use without TLS; yield host and port.

    :param certificate: file with a certificate and its key; serve HTTPS with it, on an address that
        engines use with TLS
    """

    address = "127.0.0.1" if certificate is None else WARY
    with https.served(answer, certificate, address=address) as port:
        yield f"{address}:{port}"


def is_greeting(request: BaseHTTPRequestHandler) -> bool:
    return request.path.rstrip("/") == "/v2"


@pytest.fixture
def fault(
    engine_url: str, folder: Path, fake_glance: FakeGlance, docker_client: docker.APIClient
) -> Iterator[Callable[[str, str], str]]:
    """Yield a function that boots a registry's image and returns the fault; check for leftovers."""
    before = tags(docker_client)

    def ask(registry: str, name: str) -> str:
        conf.CONF.set_override("allowed_registries", [registry], group="docker")
        image_id = str(uuid.uuid4())
        fake_glance.add(image_id, b"", properties={"docker_image": f"{registry}/{name}"})
        meta = fake_glance.meta(image_id)
        architecture = docker_client.version()["Arch"]
        store = images_store.ImageStore(Engine(engine_url, SECONDS, SECONDS), architecture)
        with pytest.raises(exception.InvalidImage) as caught:
            store.ensure(None, meta)
        return caught.value.format_message()

    yield ask
    conf.CONF.clear_override("allowed_registries", group="docker")
    assert tags(docker_client) == before


@pytest.mark.parametrize(
    ("name", "greets"), [("web:1", False), ("web:1", True), (f"web@sha256:{'1' * 64}", True)]
)
def test_it_hangs(fault: Callable[[str, str], str], name: str, greets: bool) -> None:
    over = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if greets and is_greeting(request):
            reply(request, 200, b"{}")
        else:
            over.wait(60)

    with served(answer) as registry:
        try:
            assert "the registry does not answer" in fault(registry, name)
        finally:
            over.set()


@pytest.mark.parametrize("status", [200, 403, 404, 429, 500])
@pytest.mark.parametrize("name", ["web:1", f"web@sha256:{'1' * 64}"])
def test_it_redirects_to_a_service_of_the_host(
    fault: Callable[[str, str], str], name: str, status: int
) -> None:
    with served(lambda request: reply(request, status, SECRET.encode())) as service:

        def answer(request: BaseHTTPRequestHandler) -> None:
            if is_greeting(request):
                reply(request, 200, b"{}")
            else:
                reply(request, 307, Location=f"http://{service}/latest/meta-data")

        with served(answer) as registry:
            assert SECRET not in fault(registry, name)


@pytest.mark.parametrize("name", ["web:1", "web@sha256:" + "1" * 64])
def test_it_asks_for_credentials(fault: Callable[[str, str], str], name: str) -> None:
    with served(
        lambda request: reply(request, 401, WWW_Authenticate='Basic realm="registry"')
    ) as registry:
        assert "no basic auth credentials" in fault(registry, name)


def test_it_serves_another_digest(fault: Callable[[str, str], str]) -> None:
    manifest = (
        b'{"schemaVersion": 2, "mediaType": "%s", "layers": [], "config": {"size": 2,'
        b' "mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:%s"}}'
    ) % (MANIFEST.encode(), b"2" * 64)

    def answer(request: BaseHTTPRequestHandler) -> None:
        if is_greeting(request):
            reply(request, 200, b"{}")
        else:
            reply(request, 200, manifest, Content_Type=MANIFEST)

    with served(answer) as registry:
        assert "digest" in fault(registry, "web@sha256:" + "1" * 64)


def registry_of(client: docker.APIClient, known: str = "", more: bytes = b"") -> tuple[Answer, str]:
    """Return a registry with one image, which prints "pulled", and the image's digest.

    :param known: base64 of the name and password that it requires; empty allows every client
    :param more: a further layer, which the registry has compressed
    """
    config, layers = image_of("pulled", client)
    if more:
        described = json.loads(config)
        described["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(more).hexdigest()}")
        config, layers = json.dumps(described).encode(), [*layers, gzip.compress(more)]
    blobs = {f"sha256:{hashlib.sha256(blob).hexdigest()}": blob for blob in (config, *layers)}
    digests = list(blobs)
    kind = f"application/vnd.docker.image.rootfs.diff.tar{'.gzip' if more else ''}"
    described = [{"size": len(blobs[d]), "digest": d, "mediaType": kind} for d in digests]
    described[0]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described[0],
            "layers": described[1:],
        }
    ).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    def answer(request: BaseHTTPRequestHandler) -> None:
        name = request.path.rpartition("/")[2]
        if known and request.headers["Authorization"] != f"Basic {known}":
            reply(request, 401, WWW_Authenticate='Basic realm="registry"')
        elif is_greeting(request):
            reply(request, 200, b"{}")
        elif name in blobs:
            reply(request, 200, blobs[name])
        else:
            reply(request, 200, manifest, Content_Type=MANIFEST, Docker_Content_Digest=digest)

    return answer, digest


def pulled(client: docker.APIClient, engine: Engine, name: str) -> str:
    """Return the output of a container of a pulled image; delete the image."""
    try:
        return run(client, engine.inspect_image(name).id)
    finally:
        engine.remove_image(name)


def test_it_serves_what_was_asked_for_to_whom_it_knows(
    engine_url: str, docker_client: docker.APIClient, tmp_path: Path
) -> None:
    known = base64.b64encode(b"reader:secret").decode()
    answer, digest = registry_of(docker_client, known)
    engine = Engine(engine_url, 30, 30)
    with served(answer) as registry:
        credentials = tmp_path / "config.json"
        credentials.write_text(json.dumps({"auths": {registry: {"auth": known}}}))
        assert engine.resolve_digest(f"{registry}/web:1", registry, str(credentials)) == digest
        engine.pull_image(f"{registry}/web", digest, registry, str(credentials), "/")
    assert pulled(docker_client, engine, f"{registry}/web@{digest}") == "pulled"


@pytest.mark.parametrize("status", [0, 1])
def test_an_image_that_is_verified_first(
    engine_url: str,
    folder: Path,
    fake_glance: FakeGlance,
    docker_client: docker.APIClient,
    tmp_path: Path,
    status: int,
) -> None:
    answer, digest = registry_of(docker_client)
    asked: list[str] = []

    def counting(request: BaseHTTPRequestHandler) -> None:
        if request.command == "GET":
            asked.append(request.path)
        answer(request)

    image_id = str(uuid.uuid4())
    before = docker_client.images(all=True)
    command = ["sh", "-c", f'echo "$1" >{tmp_path}/asked; exit {status}', "verify"]
    with served(counting) as registry:
        for name, value in (
            ("allowed_registries", [registry]),
            ("registry_verify_command", command),
        ):
            conf.CONF.set_override(name, value, group="docker")
        fake_glance.add(image_id, b"", properties={"docker_image": f"{registry}/web:1"})
        try:
            architecture = docker_client.version()["Arch"]
            store = images_store.ImageStore(Engine(engine_url, 30, 30), architecture)
            if status:
                with pytest.raises(exception.InvalidImage, match="verification refuses the image"):
                    store.ensure(None, fake_glance.meta(image_id))
                # The engine reads the configuration to tell the digest, but no layer.
                assert len([path for path in asked if "/blobs/" in path]) <= 1
            else:
                found = store.ensure(None, fake_glance.meta(image_id))
                assert run(docker_client, found.id) == "pulled"
                (name,) = (n for n in tags(docker_client) if n.startswith(f"novadocker/{image_id}"))
                docker_client.remove_image(name)
        finally:
            for name in ("allowed_registries", "registry_verify_command"):
                conf.CONF.clear_override(name, group="docker")
    assert (tmp_path / "asked").read_text() == f"{registry}/web@{digest}\n"
    assert docker_client.images(all=True) == before


@pytest.mark.parametrize("packed", [False, True], ids=["as the registry has it", "unpacked"])
def test_an_image_of_a_registry_is_bound_by_the_flavor(
    engine_url: str, docker_client: docker.APIClient, packed: bool
) -> None:
    answer, digest = registry_of(docker_client, more=ZEROS if packed else b"")
    engine = Engine(engine_url, 30, 30)
    before = docker_client.images(all=True)
    with served(answer) as registry:
        name = f"{registry}/web"
        most = 32 << 20 if packed else 100_000
        with pytest.raises(exception.ImageTooLarge, match=f"root disk has only {most}"):
            engine.pull_image(name, digest, registry, "", engine.info().data_root, most)
        assert docker_client.images(all=True) == before
        engine.pull_image(name, digest, registry, "", "/", 128 << 20)
    assert pulled(docker_client, engine, f"{name}@{digest}") == "pulled"


@pytest.fixture
def small_engine(state_folder: Path) -> Iterator[OwnEngine]:
    """Yield an engine whose data root has a disk of 4 GiB."""
    with engines.own_engine(
        Path(tempfile.mkdtemp(dir=state_folder)), "overlay2", filesystem="ext4", disk_bytes=4 << 30
    ) as found:
        yield found
        # The engine counts the zeros to the end.
        found.kill()
        found.start()


@pytest.mark.parametrize("breaks", [False, True], ids=["cut off", "refused"])
def test_a_sparse_file_leaves_half_of_the_disk(
    small_engine: OwnEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    breaks: bool,
) -> None:
    """The engine writes its zeros to the end, whatever becomes of the request."""
    monkeypatch.setattr(pull_bounds, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(aftermath, "_LOOK_SECONDS", 0.2)
    size = 32 << 30
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
    content = f"1\n{size}\n0\n".encode().ljust(512, b"\0")
    layer = archives.tar_of([archives.entry("zeros", content, pax_headers=records)])
    client = docker.APIClient(base_url=small_engine.url)
    answer, digest = registry_of(client, more=layer)
    engine = Engine(small_engine.url, 30, 600)
    root = engine.info().data_root
    free = space.free(Path(root))
    try:
        with served(answer) as registry:
            if breaks:
                monkeypatch.setattr(PullBounds, "note", refuse)
            with pytest.raises((exception.PullCutOff, exception.ImageTooLarge)):
                engine.pull_image(f"{registry}/web", digest, registry, "", root)
        for thread in threading.enumerate():
            if thread.name == "pull-aftermath":
                thread.join(120)
                assert not thread.is_alive()
        # A full disk would end the layer, too.
        assert "were broken off, because less than" in caplog.text
        assert space.free(Path(root)) > free * 9 // 10
    finally:
        client.close()


def refuse(_bounds: PullBounds, message: Mapping[str, Any]) -> None:
    """Refuse an image when the engine begins to unpack the layer with the sparse file."""
    total = (message.get("progressDetail") or {}).get("total", 0)
    if message.get("status") == "Extracting" and 0 < total < 1 << 10:
        raise exception.ImageTooLarge(name="web", size=2, most=1)


@pytest.fixture
def certificate(tmp_path: Path) -> Iterator[Path]:
    """Yield a certificate, with its key, that no authority of this machine has signed."""
    pem = tmp_path / "registry.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-noenc", "-days", "2", "-subj", "/CN=registry", "-addext", f"subjectAltName=IP:{WARY}"),
        *("-keyout", str(pem), "-out", str(tmp_path / "certificate")),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with pem.open("a") as both:
        both.write((tmp_path / "certificate").read_text())
    # The session's network namespace has no other such address.
    subprocess.run(["ip", "address", "add", f"{WARY}/32", "dev", "lo"], check=True)
    yield pem
    subprocess.run(["ip", "address", "del", f"{WARY}/32", "dev", "lo"], check=True)


def test_an_authority_of_the_operators_own(
    engine_url: str, docker_client: docker.APIClient, certificate: Path
) -> None:
    answer, digest = registry_of(docker_client)
    engine = Engine(engine_url, 30, 30)
    with served(answer, certificate) as registry:
        with pytest.raises(exception.EngineError, match="certificate"):
            engine.resolve_digest(f"{registry}/web:1", registry, "")
        folder = CERTIFICATES / registry
        folder.mkdir(parents=True)
        try:
            shutil.copy(certificate.with_name("certificate"), folder / "ca.crt")
            assert engine.resolve_digest(f"{registry}/web:1", registry, "") == digest
            engine.pull_image(f"{registry}/web", digest, registry, "", "/")
        finally:
            shutil.rmtree(folder)
    assert pulled(docker_client, engine, f"{registry}/web@{digest}") == "pulled"
