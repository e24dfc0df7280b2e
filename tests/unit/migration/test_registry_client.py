# SPDX-License-Identifier: Apache-2.0
"""A client of registries, and small registries that mean well or ill."""

import base64
import gzip
import hashlib
import itertools
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from novadocker import exception
from novadocker.virt.docker.migration import registry_client
from novadocker.virt.docker.migration.registry_client import Repository
from novadocker.virt.docker.migration.registry_session import (
    MAX_ANSWER_BYTES,
    RefusedAnswer,
    Session,
)
from tests import https
from tests.https import reply

TIMEOUT = 1.0
PATH = "/v2/moves/1/"
BASIC = "Basic " + base64.b64encode(b"mover:secret").decode()
OTHER_BASIC = "Basic " + base64.b64encode(b"other:word").decode()

Reply = Callable[[BaseHTTPRequestHandler], None]


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def refuse(request: BaseHTTPRequestHandler, status: int, message: str, **headers: str) -> None:
    reply(request, status, json.dumps({"errors": [{"message": message}]}).encode(), **headers)


def body_of(request: BaseHTTPRequestHandler) -> Iterator[bytes]:
    """Yield a request's body, chunk by chunk."""
    if request.headers["Transfer-Encoding"] != "chunked":
        yield request.rfile.read(int(request.headers["Content-Length"] or 0))
        return
    while size := int(request.rfile.readline(), 16):
        yield request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()


@dataclass
class Registry:
    """A registry in memory.

    :ivar challenge: what it demands credentials by, if it does
    :ivar known: of which ``Authorization`` headers it lets one in
    :ivar special: for a method and the end of a path, how to answer instead
    :ivar asked: method, path and ``Authorization`` of each request
    :ivar kept: data by digest; None for any that goes nowhere
    :ivar receiving: set when the first data of an upload has arrived
    """

    challenge: str = ""
    known: set[str] = field(default_factory=set)
    special: dict[tuple[str, str], Reply] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    kept: dict[str, bytes] | None = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    upload: bytearray = field(default_factory=bytearray)
    receiving: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        given = request.headers["Authorization"]
        self.asked.append((request.command, path, given))
        self.headers.append(request.headers)
        for (method, end), special in self.special.items():
            if method == request.command and path.endswith(end):
                special(request)
                return
        if self.challenge and given not in self.known:
            refuse(request, 401, "authentication required", WWW_Authenticate=self.challenge)
            return
        self._serve(request, path.removeprefix(PATH), query)

    def _serve(self, request: BaseHTTPRequestHandler, path: str, query: str) -> None:
        name = path.rpartition("/")[2]
        stores = {"blobs": self.kept or {}, "manifests": self.manifests}
        store = stores[path.partition("/")[0]]
        match request.command, path.split("/"):
            case "POST", ["blobs", "uploads", ""]:
                self.upload.clear()
                reply(request, 202, Location=f"{PATH}blobs/uploads/1?state=a")
            case "PATCH", ["blobs", "uploads", "1"]:
                for chunk in body_of(request):
                    self.receiving.set()
                    if self.kept is not None:
                        self.upload += chunk
                reply(request, 202, Location=f"{PATH}blobs/uploads/1?state=b")
            case "PUT", ["blobs", "uploads", "1"]:
                fields = dict(pair.split("=") for pair in query.split("&"))
                assert fields["state"] == "b"
                if self.kept is not None:
                    assert fields["digest"] == digest_of(bytes(self.upload))
                    self.kept[fields["digest"]] = bytes(self.upload)
                reply(request, 201)
            case "PUT", ["manifests", _]:
                content = b"".join(body_of(request))
                self.manifests[name] = self.manifests[digest_of(content)] = content
                reply(request, 201)
            case (("GET" | "HEAD"), _) if name in store:
                digest = digest_of(store[name])
                reply(request, 200, store[name], Docker_Content_Digest=digest)
            case "DELETE", _ if name in store:
                gone = store[name]
                for other in [key for key, value in store.items() if value == gone]:
                    del store[other]
                reply(request, 202)
            case _:
                refuse(request, 404, "unknown")


@dataclass
class Tokens:
    """A token server.

    :ivar known: the ``Authorization`` header that it grants tokens to
    :ivar lets_in: the registry that accepts a token until the next one is granted
    """

    lets_in: Registry
    known: str | None = BASIC
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    body: bytes | None = None

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        given = request.headers["Authorization"]
        self.asked.append((request.path, given))
        if self.body is not None:
            reply(request, 200, self.body)
        elif given != self.known:
            refuse(request, 401, "unknown user")
        else:
            token = f"token-{len(self.asked)}"
            self.lets_in.known = {f"Bearer {token}"}
            reply(request, 200, json.dumps({"token": token}).encode())


class World:
    """Servers, and what the operator configured for them."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._certificates = folder / "certs.d"
        self._credentials = folder / "config.json"
        self._stack = stack
        self._pair = https.make_certificate(folder)
        self._entries: dict[str, dict[str, str]] = {}

    def serve(self, answer: https.Answer, name: str = "127.0.0.1", trusted: bool = True) -> str:
        """Start a server; return its address."""
        address = f"{name}:{self._stack.enter_context(https.served(answer, *self._pair))}"
        if trusted:
            trust = self._certificates / address
            trust.mkdir(parents=True)
            (trust / "ca.crt").write_bytes(self._pair[0].read_bytes())
        return address

    def log_in(self, address: str, basic: str = BASIC) -> None:
        """Write credentials to the operator's file."""
        self._entries[address] = {"auth": basic.removeprefix("Basic ")}
        self._credentials.write_text(json.dumps({"auths": self._entries}))

    def repository(self, address: str) -> Repository:
        path = str(self._credentials) if self._entries else ""
        return Repository(f"{address}/moves/1", path, TIMEOUT)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(registry_client, "CERTIFICATES", tmp_path / "certs.d")
    # nobody listens there
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with ExitStack() as stack:
        yield World(tmp_path, stack)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def check(repository: Repository) -> None:
    """Do all that a registry is for."""
    assert repository.find_image("copy") is None
    layers = [repository.upload([b"first ", b"layer"]), repository.upload([b"second"])]
    assert (layers[0].digest, layers[0].size) == (digest_of(b"first layer"), 11)
    image = repository.put_image("copy", {"move": "words"}, layers)
    assert repository.find_image("copy") == image
    assert image.layers == [layer.digest for layer in layers]
    assert repository.resolve("copy") == image.digest
    assert b"".join(repository.download(layers[0].digest)) == b"first layer"
    # the second time there is nothing
    for _ in range(2):
        repository.remove_image(image.digest)
        for blob in image.blobs:
            repository.remove_blob(blob)
    assert repository.find_image("copy") is None


def test_everybody_may(world: World, registry: Registry) -> None:
    check(world.repository(world.serve(registry.answer)))
    assert (registry.kept, registry.manifests) == ({}, {})


def test_name_and_password(world: World, registry: Registry) -> None:
    registry.challenge, registry.known = 'Basic realm="registry"', {BASIC}
    address = world.serve(registry.answer)
    world.log_in(address)
    check(world.repository(address))
    # asked for once
    assert [given for _, _, given in registry.asked].count(None) == 1


@pytest.mark.parametrize("basic", ["", OTHER_BASIC])
def test_a_user_whom_the_registry_does_not_know(
    world: World, registry: Registry, basic: str
) -> None:
    registry.challenge, registry.known = 'Basic realm="registry"', {BASIC}
    address = world.serve(registry.answer)
    if basic:
        world.log_in(address, basic)
    with pytest.raises(exception.RegistryFailed, match="401 authentication required"):
        world.repository(address).find_image("copy")


def bearer(world: World, registry: Registry, **options: Any) -> tuple[Tokens, str, str]:
    """Have a registry accept tokens alone; return the addresses of both."""
    tokens = Tokens(registry)
    address = world.serve(registry.answer)
    other = world.serve(tokens.answer, **options)
    scope = "repository:moves/1:pull,push"
    registry.challenge = f'Bearer realm="https://{other}/token",service="reg",scope="{scope}"'
    return tokens, address, other


def test_tokens(world: World, registry: Registry) -> None:
    # of another port of the registry's host
    tokens, address, _ = bearer(world, registry, trusted=False)
    world.log_in(address)
    check(world.repository(address))
    path, given = tokens.asked[0]
    assert path == "/token?service=reg&scope=repository%3Amoves%2F1%3Apull%2Cpush"
    assert given == BASIC
    # the registry has seen no password
    assert BASIC not in {given for _, _, given in registry.asked}


def test_a_token_that_ends_during_an_upload(world: World, registry: Registry) -> None:
    tokens, address, _ = bearer(world, registry)
    world.log_in(address)
    repository = world.repository(address)
    repository.find_image("copy")

    def chunks() -> Iterator[bytes]:
        yield b"first "
        # The registry checks the token before it reads data.
        assert registry.receiving.wait(60)
        registry.known.clear()
        yield b"second"

    begun = len(registry.asked)
    blob = repository.upload(chunks())
    assert registry.kept == {blob.digest: b"first second"}
    # a new token before the stream, another one after it, and the stream but once
    tried = [(method, given is not None) for method, _, given in registry.asked[begun:]]
    assert tried == [
        *(("POST", False), ("POST", True)),
        ("PATCH", True),
        *(("PUT", True), ("PUT", True)),
    ]
    assert len(tokens.asked) == 3


def test_a_stream_that_the_registry_denies_is_not_sent_again(
    world: World, registry: Registry
) -> None:
    _, address, _ = bearer(world, registry)
    world.log_in(address)

    def deny(request: BaseHTTPRequestHandler) -> None:
        for _ in body_of(request):
            pass
        refuse(request, 401, "no more", WWW_Authenticate=registry.challenge)

    registry.special["PATCH", "uploads/1"] = deny
    with pytest.raises(exception.RegistryFailed, match="401 no more"):
        world.repository(address).upload([b"data"])
    assert [method for method, _, _ in registry.asked].count("PATCH") == 1


def test_a_token_server_that_refuses_the_credentials(world: World, registry: Registry) -> None:
    _, address, _ = bearer(world, registry)
    world.log_in(address, OTHER_BASIC)
    with pytest.raises(exception.RegistryFailed, match=r"token server .* refuses the credentials"):
        world.repository(address).find_image("copy")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"token": 3}', b'{"token": "a\\nb: c"}', b"{" * 100_000]
)
def test_a_token_server_that_gives_no_token(world: World, registry: Registry, body: bytes) -> None:
    tokens, address, _ = bearer(world, registry)
    world.log_in(address)
    tokens.body = body
    with pytest.raises(exception.RegistryFailed):
        world.repository(address).find_image("copy")


def test_a_token_server_on_another_host_gets_the_credentials_of_its_own_entry(
    world: World, registry: Registry
) -> None:
    tokens, address, other = bearer(world, registry, name="localhost")
    world.log_in(address)
    with pytest.raises(exception.RegistryFailed, match=r"localhost:\d+, for which .* no entry"):
        world.repository(address).find_image("copy")
    assert tokens.asked == []
    world.log_in(other, OTHER_BASIC)
    tokens.known = OTHER_BASIC
    check(world.repository(address))
    assert {given for _, given in tokens.asked} == {OTHER_BASIC}


def test_a_refusal_without_a_challenge(world: World, registry: Registry) -> None:
    registry.special["GET", "copy"] = lambda request: refuse(request, 401, "no")
    with pytest.raises(exception.RegistryFailed, match="WWW-Authenticate is malformed"):
        world.repository(world.serve(registry.answer)).find_image("copy")


@pytest.mark.parametrize(
    "challenge",
    [
        *(
            " ",
            "Digest",
            "Bearer",
            "Bearer realm",
            'Bearer service="a"',
            'Bearer realm="',
            "=",
            "Bearer =,=",
        ),
        'Bearer realm="http://{registry}/token",service="reg"',
        'Bearer realm="//{registry}/token",service="reg"',
        'Bearer realm="/token",service="reg"',
        'Bearer realm="https://[/token",service="reg"',
        'Bearer realm="https:///token",service="reg"',
        'Bearer realm="https://{other}/token",service="reg"',
        # a host before the backslash for some parsers, and one behind it for others
        'Bearer realm="https://{other}\\\\@{registry}/token",service="reg"',
        'Bearer realm="https://{registry}@{other}/token",service="reg"',
    ],
)
def test_a_challenge_that_leads_elsewhere_or_nowhere(
    world: World, registry: Registry, challenge: str
) -> None:
    address = world.serve(registry.answer)
    tokens = Tokens(registry)
    other = world.serve(tokens.answer, "localhost")
    world.log_in(address)
    registry.challenge = challenge.format(registry=address, other=other)
    with pytest.raises(exception.RegistryFailed):
        world.repository(address).find_image("copy")
    assert tokens.asked == []
    assert {path for _, path, _ in registry.asked} == {f"{PATH}manifests/copy"}


def test_a_challenge_that_would_take_hours_to_parse(world: World, registry: Registry) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(401)
        for _ in range(50):
            request.send_header("WWW-Authenticate", "," * 60_000)
        request.end_headers()

    registry.special["GET", "copy"] = answer
    begin = time.monotonic()
    with pytest.raises(exception.RegistryFailed, match="WWW-Authenticate is malformed"):
        world.repository(world.serve(registry.answer)).find_image("copy")
    assert time.monotonic() - begin < 10


def test_credentials_reach_no_host_that_the_session_was_not_told_of(
    world: World, registry: Registry, tmp_path: Path
) -> None:
    """Whatever the library makes of a challenge."""
    session = Session(tmp_path / "certs.d", "127.0.0.1", TIMEOUT)
    url = f"https://{world.serve(registry.answer, 'localhost')}{PATH}manifests/copy"
    with pytest.raises(RefusedAnswer, match="credentials to be sent to localhost"):
        session.get(url, headers={"Authorization": BASIC})
    assert registry.asked == []
    session.trust_with_credentials("localhost:5000")
    session.get(url, headers={"Authorization": BASIC})
    assert registry.asked == [("GET", f"{PATH}manifests/copy", BASIC)]


def test_what_is_fetched_may_lie_on_another_host(world: World, registry: Registry) -> None:
    """As with registries that keep data in S3: by a redirect, and without the credentials."""
    registry.challenge, registry.known = 'Basic realm="registry"', {BASIC}
    store = Registry(kept={"blob": b"data"})
    address = world.serve(registry.answer)
    there = world.serve(store.answer, "localhost")
    world.log_in(address)

    def redirect(request: BaseHTTPRequestHandler) -> None:
        if request.headers["Authorization"] == BASIC:
            reply(request, 307, Location=f"https://{there}{PATH}blobs/blob")
        else:
            refuse(request, 401, "who?", WWW_Authenticate=registry.challenge)

    registry.special["GET", digest_of(b"data")] = redirect
    assert b"".join(world.repository(address).download(digest_of(b"data"))) == b"data"
    assert store.asked == [("GET", f"{PATH}blobs/blob", None)]


@pytest.mark.parametrize("scheme", ["http", "https", "file"])
@pytest.mark.parametrize("end", ["manifests/copy", "blobs/uploads/", "uploads/1", "d1", "t"])
def test_no_other_redirect_is_followed(
    world: World, registry: Registry, scheme: str, end: str
) -> None:
    service = Registry()
    address = world.serve(registry.answer)
    other = world.serve(service.answer, "localhost")

    def redirect(request: BaseHTTPRequestHandler) -> None:
        for _ in body_of(request):
            pass
        reply(request, 302, Location=f"{scheme}://{other}/latest/meta-data")

    for method in ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"):
        registry.special[method, end] = redirect
    repository = world.repository(address)
    actions: dict[str, Callable[[], object]] = {
        "manifests/copy": lambda: repository.find_image("copy"),
        "blobs/uploads/": lambda: repository.upload([b"data"]),
        "uploads/1": lambda: repository.upload([b"data"]),
        "d1": lambda: repository.remove_image("d1"),
        "t": lambda: repository.resolve("t"),
    }
    with pytest.raises(exception.RegistryFailed, match=f"redirects a request to {scheme}://local"):
        actions[end]()
    assert service.asked == []


def test_a_download_is_not_redirected_to_plain_http(world: World, registry: Registry) -> None:
    registry.special["GET", "d"] = lambda request: reply(
        request, 302, Location="http://127.0.0.1/latest/meta-data"
    )
    with pytest.raises(exception.RegistryFailed, match=r"http://127\.0\.0\.1 is not at https"):
        list(world.repository(world.serve(registry.answer)).download("d"))


def test_a_download_is_not_redirected_for_ever(world: World, registry: Registry) -> None:
    registry.special["GET", "d"] = lambda request: reply(request, 302, Location=request.path)
    with pytest.raises(exception.RegistryFailed, match="redirects"):
        list(world.repository(world.serve(registry.answer)).download("d"))
    assert len(registry.asked) < 10


@pytest.mark.parametrize("place", ["http://{}/a", "https://localhost:1/a", "//localhost/a"])
def test_uploads_stay_at_the_registry(world: World, registry: Registry, place: str) -> None:
    address = world.serve(registry.answer)
    location = place.format(address)
    registry.special["POST", "/"] = lambda request: reply(request, 202, Location=location)
    with pytest.raises(exception.RegistryFailed, match="leads uploads to another place"):
        world.repository(address).upload([b"data"])
    assert len(registry.asked) == 1


def endless(request: BaseHTTPRequestHandler, status: int) -> None:
    request.send_response(status)
    if status == 302:
        request.send_header("Location", "https://localhost:1/a")
    request.end_headers()
    with suppress(OSError):
        while True:
            request.wfile.write(bytes(1 << 20))


@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_a_manifest_without_an_end(world: World, registry: Registry, status: int) -> None:
    registry.special["GET", "copy"] = lambda request: endless(request, status)
    tracemalloc.start()
    try:
        with pytest.raises(exception.RegistryFailed, match="more than 4 MiB"):
            world.repository(world.serve(registry.answer)).find_image("copy")
        assert tracemalloc.get_traced_memory()[1] < 5 * MAX_ANSWER_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [302, 404])
def test_an_error_of_a_download_without_an_end(
    world: World, registry: Registry, status: int
) -> None:
    registry.special["GET", "d"] = lambda request: endless(request, status)
    with pytest.raises(exception.RegistryFailed, match="more than 4 MiB"):
        list(world.repository(world.serve(registry.answer)).download("d"))


def test_a_configuration_without_an_end(world: World, registry: Registry) -> None:
    digest = digest_of(b"")
    registry.manifests["copy"] = json.dumps({"config": {"digest": digest}, "layers": []}).encode()
    registry.special["GET", digest] = lambda request: endless(request, 200)
    with pytest.raises(exception.RegistryFailed, match="configuration of an image is too long"):
        world.repository(world.serve(registry.answer)).find_image("copy")


def test_an_answer_that_grows_when_it_is_unpacked(world: World, registry: Registry) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    registry.special["GET", "copy"] = lambda request: reply(
        request, 200, bomb, Content_Encoding="gzip"
    )
    with pytest.raises(exception.RegistryFailed, match="compressed"):
        world.repository(world.serve(registry.answer)).find_image("copy")


def drip(request: BaseHTTPRequestHandler, data: bytes) -> None:
    """Send bytes one by one, each of them long before the timeout of a read."""
    with suppress(OSError):
        for byte in data:
            request.wfile.write(bytes([byte]))
            time.sleep(TIMEOUT / 10)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n"
DRIPS = {
    "head": (b"", HEAD + b"Content-Type: text/plain\r\n" * 8),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 8),
    "body": (HEAD + b"\r\n", bytes(200)),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\na\r\n" * 40,
    ),
}


@pytest.mark.parametrize("kind", DRIPS)
def test_an_answer_that_takes_for_ever(world: World, registry: Registry, kind: str) -> None:
    first, rest = DRIPS[kind]

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(first)
        drip(request, rest)

    registry.special["GET", "copy"] = answer
    repository = world.repository(world.serve(registry.answer))
    begin = time.monotonic()
    with pytest.raises(exception.RegistryFailed, match="timed out"):
        repository.find_image("copy")
    assert time.monotonic() - begin < 3 * TIMEOUT


def test_the_head_of_a_download_that_takes_for_ever(world: World, registry: Registry) -> None:
    registry.special["GET", "d"] = lambda request: drip(request, DRIPS["head"][1])
    with pytest.raises(exception.RegistryFailed, match="timed out"):
        list(world.repository(world.serve(registry.answer)).download("d"))


def test_a_download_may_take_longer_than_the_timeout(world: World, registry: Registry) -> None:
    data = b"slow"

    def answer(request: BaseHTTPRequestHandler) -> None:
        time.sleep(TIMEOUT * 0.6)
        request.wfile.write(b"HTTP/1.1 200 OK\r\n")
        # The rest of the head is read with little time left, and each byte of the body with all.
        request.wfile.write(b"Content-Length: 4\r\n\r\n")
        for byte in data:
            time.sleep(TIMEOUT * 0.6)
            request.wfile.write(bytes([byte]))

    registry.special["GET", digest_of(data)] = answer
    got = world.repository(world.serve(registry.answer)).download(digest_of(data))
    assert b"".join(got) == data


def test_a_token_server_that_hangs(world: World, registry: Registry) -> None:
    other = world.serve(lambda request: time.sleep(2 * TIMEOUT))
    registry.challenge = f'Bearer realm="https://{other}/token",service="reg"'
    with pytest.raises(exception.RegistryFailed, match="timed out"):
        world.repository(world.serve(registry.answer)).find_image("copy")


@pytest.mark.parametrize("end", ["copy", "d"])
def test_a_registry_that_hangs(world: World, registry: Registry, end: str) -> None:
    registry.special["GET", end] = lambda request: time.sleep(2 * TIMEOUT)
    repository = world.repository(world.serve(registry.answer))
    with pytest.raises(exception.RegistryFailed, match="timed out"):
        repository.find_image("copy") if end == "copy" else list(repository.download("d"))


def test_a_stream_is_not_held_in_memory(world: World, registry: Registry) -> None:
    registry.kept = None
    repository = world.repository(world.serve(registry.answer))
    chunk = bytes(256 << 10)
    tracemalloc.start()
    try:
        blob = repository.upload(itertools.repeat(chunk, 128))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert blob.size == 32 << 20


@pytest.mark.parametrize("data", [b"", b"dat", b"data and more", b"atad"])
def test_other_data_than_was_asked_for(world: World, registry: Registry, data: bytes) -> None:
    digest = digest_of(b"data")
    registry.kept = {digest: data}
    with pytest.raises(exception.RegistryFailed, match="other data than was asked for"):
        list(world.repository(world.serve(registry.answer)).download(digest))


def test_a_download_that_is_cut_off(world: World, registry: Registry) -> None:
    digest = digest_of(b"data")
    registry.special["GET", digest] = lambda request: request.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndat"
    )
    with pytest.raises(exception.RegistryFailed):
        list(world.repository(world.serve(registry.answer)).download(digest))


GOOD = digest_of(b"{}")


@pytest.mark.parametrize(
    "manifest",
    [
        *(b"", b"\xff", b"[]", b"3", b"{}", b"[" * 100_000),
        b'{"config": {"digest": "../../../other"}, "layers": []}',
        b'{"config": {"digest": 3}, "layers": []}',
        b'{"config": {"digest": "%s"}, "layers": [{}]}' % GOOD.encode(),
        b'{"config": {"digest": "%s"}, "layers": [{"digest": "sha256:1"}]}' % GOOD.encode(),
        b'{"config": {"digest": "%s"}, "layers": []}' % digest_of(b"[3]").encode(),
    ],
)
def test_a_malformed_manifest(world: World, registry: Registry, manifest: bytes) -> None:
    registry.kept = {GOOD: b"{}", digest_of(b"[3]"): b"[3]"}
    registry.manifests["copy"] = manifest
    with pytest.raises(exception.RegistryFailed, match="malformed"):
        world.repository(world.serve(registry.answer)).find_image("copy")


def test_a_registry_that_gives_no_digest(world: World, registry: Registry) -> None:
    registry.special["HEAD", "copy"] = lambda request: reply(request, 200)
    with pytest.raises(exception.RegistryFailed, match="gives no digest of the tag copy"):
        world.repository(world.serve(registry.answer)).resolve("copy")


def test_a_registry_that_deletes_no_blobs(
    world: World, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as Quay."""
    for end in ("blobs/d", "manifests/d"):
        registry.special["DELETE", end] = lambda request: refuse(request, 405, "unsupported")
    repository = world.repository(world.serve(registry.answer))
    repository.remove_blob("d")
    assert f"does not delete blob d of {repository.name}" in caplog.text
    with pytest.raises(exception.RegistryFailed, match="405 unsupported"):
        repository.remove_image("d")


def test_an_error_without_words(world: World, registry: Registry) -> None:
    bodies = iter([b"", b"[]", b'{"errors": 3}', b"[" * 100_000])
    registry.special["DELETE", "d"] = lambda request: reply(request, 503, next(bodies))
    repository = world.repository(world.serve(registry.answer))
    for _ in range(4):
        with pytest.raises(exception.RegistryFailed, match="503 Service Unavailable"):
            repository.remove_blob("d")


def test_an_error_has_the_registrys_words(world: World, registry: Registry) -> None:
    detail = {"DriverName": "filesystem", "Enclosed": {"Op": "mkdir", "Err": 28}}
    body = json.dumps({"errors": [{"message": "unknown error", "detail": detail}]}).encode()
    registry.special["POST", "/"] = lambda request: reply(request, 500, body)
    words = "500 unknown error: No space left on device"
    with pytest.raises(exception.RegistryFailed, match=words):
        world.repository(world.serve(registry.answer)).upload([b"data"])


def test_a_certificate_of_nobody(world: World, registry: Registry) -> None:
    address = world.serve(registry.answer, trusted=False)
    with pytest.raises(exception.RegistryFailed, match="certificate verify failed"):
        world.repository(address).find_image("copy")
    assert registry.asked == []


def test_no_cookies(world: World, registry: Registry) -> None:
    """Harbor takes a client with a cookie for a browser."""
    registry.special["HEAD", "copy"] = lambda request: reply(
        request, 200, Docker_Content_Digest=GOOD, Set_Cookie="sid=1; Path=/"
    )
    repository = world.repository(world.serve(registry.answer))
    for _ in range(2):
        assert repository.resolve("copy") == GOOD
    assert [headers["Cookie"] for headers in registry.headers] == [None, None]
