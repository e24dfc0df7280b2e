# SPDX-License-Identifier: Apache-2.0
"""The engine module's requests and its parsing of responses; tests/engine has the real engine."""

import http.server
import io
import json
import socket
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
import urllib3

from novadocker import exception
from novadocker.extra_specs import Nesting
from novadocker.virt.docker.engine import (
    client,
    connection,
    pull_bounds,
    registry_errors,
    seccomp,
)
from novadocker.virt.docker.engine import requests as engine_requests
from novadocker.virt.docker.engine.connection import Tls
from novadocker.virt.docker.engine.masks import MASKED_PATHS
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerSpec, Isolation, Limits, ResourceLimit, Terminal

SPEC = ContainerSpec(
    name="nova-u",
    image_id="sha256:1",
    hostname="web",
    labels={"a": "b"},
    runtime="novadocker",
    limits=Limits(
        cpu_shares=3,
        memory_bytes=4,
        swap_bytes=1,
        pids=5,
        cpu_period_us=7,
        cpu_quota_us=2,
        cpuset_cpus=frozenset([10, 2]),
    ),
    isolation=Isolation(
        capabilities=("CHOWN", "KILL"),
        devices=("/dev/fuse",),
        resource_limits=(ResourceLimit("nofile", 10, 20),),
        shm_bytes=1 << 20,
        oom_score_adj=5,
        sysctls=(("kernel.msgmax", "1"),),
    ),
    console_log_max_mb=10,
)


@pytest.mark.parametrize("nesting", Nesting)
@pytest.mark.parametrize("systemd", [False, True])
def test_a_container_shares_nothing_with_the_host(nesting: Nesting, systemd: bool) -> None:
    """The page on security says so of the items of the CIS Docker Benchmark."""
    spec = replace(SPEC, isolation=replace(SPEC.isolation, nesting=nesting), systemd=systemd)
    config = engine_requests.container_config(spec)
    host = config["HostConfig"]
    modes = {"PidMode", "IpcMode", "UTSMode", "UsernsMode", "PortBindings", "PublishAllPorts"}
    assert not host.keys() & {*modes, "Privileged", "Binds", "VolumesFrom", "CgroupParent"}
    assert not config.keys() & {"ExposedPorts", "User", "Healthcheck"}
    assert host["NetworkMode"] == "none"
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["CapDrop"] == ["ALL"]
    assert min(host["Memory"], host["MemorySwap"], host["CpuShares"], host["PidsLimit"]) > 0
    assert ("seccomp=unconfined" in host["SecurityOpt"]) == (nesting == Nesting.HOST)
    assert not any("BindOptions" in mount for mount in host["Mounts"])


def test_container_without_any_network_of_the_engine() -> None:
    config = engine_requests.container_config(SPEC)
    assert config["NetworkDisabled"] is True
    assert config["HostConfig"]["NetworkMode"] == "none"
    assert config["HostConfig"]["Runtime"] == "novadocker"
    assert config["HostConfig"]["RestartPolicy"] == {"Name": "no"}
    assert "Privileged" not in config["HostConfig"]
    assert "Entrypoint" not in config
    assert "Cmd" not in config


def test_container_limits() -> None:
    host = engine_requests.container_config(SPEC)["HostConfig"]
    assert (host["CpuPeriod"], host["CpuQuota"], host["CpuShares"]) == (7, 2, 3)
    assert (host["CpusetCpus"], host["CpusetMems"], host["PidsLimit"]) == ("2,10", "", 5)
    assert (host["Memory"], host["MemorySwap"]) == (4, 5)
    assert host["LogConfig"]["Config"] == {"max-size": "5120k", "max-file": "2"}


def test_size_of_the_disk() -> None:
    sized = replace(SPEC, limits=replace(SPEC.limits, disk_bytes=1 << 30))
    assert engine_requests.container_config(sized)["HostConfig"]["StorageOpt"] == {
        "size": "1073741824"
    }
    # An engine without support for sizes refuses any size.
    assert engine_requests.container_config(SPEC)["HostConfig"]["StorageOpt"] == {}


def test_container_isolation() -> None:
    host = engine_requests.container_config(SPEC)["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["CHOWN", "KILL"])
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 20}]
    assert [device["PathOnHost"] for device in host["Devices"]] == ["/dev/fuse"]
    assert (host["ShmSize"], host["OomScoreAdj"]) == (1 << 20, 5)
    assert host["Sysctls"] == {"kernel.msgmax": "1"}
    assert host["SecurityOpt"] == [f"seccomp={seccomp.profile(SPEC.isolation)}"]
    assert {"/sys/devices/virtual/dmi", "/sys/devices/virtual/powercap"} < set(host["MaskedPaths"])
    # The engine applies its own AppArmor profile and read-only paths.
    assert not {"ReadonlyPaths", "Privileged"} & host.keys()


def test_shared_memory_is_half_of_the_memory_by_default() -> None:
    default = replace(SPEC, isolation=replace(SPEC.isolation, shm_bytes=None))
    assert engine_requests.container_config(default)["HostConfig"]["ShmSize"] == 2


def test_systemd() -> None:
    systemd = replace(SPEC, systemd=True, stop_signal="SIGRTMIN+3", environment={"A": "b"})
    config = engine_requests.container_config(systemd)
    assert config["StopSignal"] == "SIGRTMIN+3"
    assert config["Env"] == ["A=b", "container=docker"]
    assert config["HostConfig"]["CgroupnsMode"] == "private"
    assert set(config["HostConfig"]["Tmpfs"]) == {"/run", "/run/lock"}
    plain = engine_requests.container_config(SPEC)
    assert plain["Env"] == []
    assert "StopSignal" not in plain
    assert not {"CgroupnsMode", "Tmpfs"} & plain["HostConfig"].keys()


def test_nesting_has_a_profile_and_writes_its_sysctls() -> None:
    nesting = isolation.isolation({"docker:nesting": "true"})
    config = engine_requests.container_config(replace(SPEC, isolation=nesting))
    host = config["HostConfig"]
    assert host["SecurityOpt"] == ["apparmor=unconfined", f"seccomp={seccomp.profile(nesting)}"]
    assert host["ReadonlyPaths"] == []
    assert host["MaskedPaths"] == list(MASKED_PATHS)
    assert set(config["Volumes"]) > {"/var/lib/docker", "/var/lib/containers"}
    assert host["CgroupnsMode"] == "private"


def test_mounts_need_another_profile_of_apparmor() -> None:
    mounts = isolation.isolation({"docker:capabilities": "SYS_ADMIN"})
    host = engine_requests.container_config(replace(SPEC, isolation=mounts))["HostConfig"]
    assert host["SecurityOpt"] == ["apparmor=unconfined", f"seccomp={seccomp.profile(mounts)}"]
    assert not {"ReadonlyPaths", "CgroupnsMode"} & host.keys()


def test_nesting_as_root_of_the_host_lifts_the_profiles() -> None:
    nesting = replace(SPEC, isolation=replace(SPEC.isolation, nesting=Nesting.HOST))
    host = engine_requests.container_config(nesting)["HostConfig"]
    assert host["SecurityOpt"] == ["apparmor=unconfined", "seccomp=unconfined"]
    assert "Privileged" not in host


def test_tar_holds_root_owned_files_below_the_root() -> None:
    content = engine_requests.create_archive({"/etc/hosts": b"x", "motd": b"yy"})
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
    assert [(m.name, m.size, m.mode, m.uid) for m in members] == [
        ("etc/hosts", 1, 0o644, 0),
        ("motd", 2, 0o644, 0),
    ]


ROWS_V1 = [
    {"op": "Read", "value": 10, "major": 254},
    {"op": "Write", "value": 1, "major": 254},
    {"op": "Read", "value": 5, "major": 7},
]


@pytest.mark.parametrize(
    ("blkio", "cpu", "read", "each"),
    [
        (ROWS_V1, {"total_usage": 3, "percpu_usage": [1, 2]}, 15, (1, 2)),
        ([{"op": "read", "value": 7}], {"total_usage": 3}, 7, ()),
        (None, {"total_usage": 3}, 0, ()),
    ],
)
def test_usage(blkio: Any, cpu: Any, read: int, each: tuple[int, ...]) -> None:
    usage = engine_requests.usage(
        {
            "cpu_stats": {"cpu_usage": cpu},
            "memory_stats": {"usage": 8, "limit": 9},
            "blkio_stats": {"io_service_bytes_recursive": blkio, "io_serviced_recursive": None},
        }
    )
    assert usage.disk_read_bytes == read
    assert usage.cpu_nanoseconds_each == each
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (8, 9)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (requests.ReadTimeout(), True),
        (requests.ConnectionError(urllib3.exceptions.ReadTimeoutError(None, "u", "m")), True),  # type: ignore[arg-type]
        (requests.ConnectionError("refused"), False),
        (requests.ConnectTimeout(), False),
        (None, False),
    ],
)
def test_read_timeouts(error: Any, expected: bool) -> None:
    assert connection.is_read_timeout(error) is expected


SECRET = "the-secret-of-a-service"


class Refusing(http.server.BaseHTTPRequestHandler):
    """An engine that refuses each request to a registry with a status and a message."""

    status = 500
    message = ""

    def do_GET(self) -> None:
        is_version = self.path.endswith("/version")
        found = {"ApiVersion": "1.41"} if is_version else {"message": self.message}
        self._send(200 if is_version else max(400, self.status), found)

    def do_POST(self) -> None:
        # The engine reports an error of a pull or push in the body.
        self._send(*((200, {"error": self.message}) if self.status == 200 else (self.status, {})))

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def _send(self, status: int, found: dict[str, str]) -> None:
        body = json.dumps(found or {"message": self.message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing."""


@contextmanager
def engine_with(path: Path, handler: type[Refusing]) -> Iterator[client.Engine]:
    """Yield a client of an engine that refuses each request."""
    with socketserver.ThreadingUnixStreamServer(str(path), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield client.Engine(f"unix://{path}", 10, 10)
        server.shutdown()


class Replaced(Refusing):
    """An engine of which another version is started."""

    version = ""

    def do_GET(self) -> None:
        if self.path == "/version":
            self._send(200, {"ApiVersion": self.version})
        elif self.path.startswith(f"/v{self.version}/"):
            self._send(200, {"Running": True, "Pid": 7})  # type: ignore[dict-item]
        else:
            self._send(400, {"message": self.message})


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (
            ("1.51", "1.41"),
            "client version 1.51 is too new. Maximum supported API version is 1.41",
        ),
        (
            ("1.41", "1.52"),
            "client version 1.41 is too old. Minimum supported API version is 1.44, please upgrade "
            "your client to a newer version",
        ),
    ],
)
def test_another_version_of_the_engine(
    tmp_path: Path, versions: tuple[str, str], message: str
) -> None:
    """All threads use its API version from the request on that it refuses."""
    results: list[object] = []

    def ask() -> None:
        try:
            results.append(engine.terminal_process(Terminal(socket.socket(), b"", "/exec/1")))
        except exception.EngineUnavailable as error:
            results.append(error.kwargs["reason"])

    def ask_before_and_after() -> None:
        ask()
        asked.wait(10)
        replaced.wait(10)
        ask()

    handler = type("Changing", (Replaced,), {"version": versions[0], "message": message})
    asked, replaced = threading.Barrier(2), threading.Event()
    with engine_with(tmp_path / "docker.sock", handler) as engine:
        ask()
        other = threading.Thread(target=ask_before_and_after)
        other.start()
        asked.wait(10)
        handler.version = versions[1]
        ask()
        ask()
        replaced.set()
        other.join(10)
    assert [result for result in results if isinstance(result, int)] == [7, 7, 7, 7]
    (refusal,) = (str(result) for result in results if not isinstance(result, int))
    assert "another version of the engine" in refusal


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("request_of", ["look-up", "pull", "push"])
@pytest.mark.parametrize(
    "message",
    [
        f"error parsing HTTP 404 response body: invalid character: '{SECRET}'",
        f"unknown: {SECRET}",
        f"denied: {SECRET}",
        f"pull access denied for r.example/web, repository does not exist: denied: {SECRET}",
        f"toomanyrequests: {SECRET}",
        f"received unexpected HTTP status: 500 {SECRET}",
        f"No such image: {SECRET}",
        f"Get http://{SECRET}:22/v2/: dial tcp 192.0.2.7:22: connect: connection refused",
    ],
)
def test_a_fault_of_a_registry_shows_nothing_of_its_answer(
    tmp_path: Path,
    status: int,
    request_of: str,
    message: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = types.SimpleNamespace(data_root=str(tmp_path))
    monkeypatch.setattr(client.Engine, "info", lambda _: known)
    handler = type("Handler", (Refusing,), {"status": status, "message": message})
    with engine_with(tmp_path / "docker.sock", handler) as asked:
        requests_of = {
            "look-up": lambda: asked.resolve_digest("r.example/web:1", "r.example", ""),
            "pull": lambda: asked.pull_image("r.example/web", "sha256:1", "r.example", "", "/"),
            "push": lambda: asked.push_image("r.example/web", "1", "r.example", ""),
        }
        with pytest.raises(exception.EngineError) as caught:
            requests_of[request_of]()
    # Nova stores the traceback with the chain of exceptions as the details of the fault.
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "192.0.2.7" not in shown
    assert caught.value.kwargs["reason"] in registry_errors.SENTENCES
    assert SECRET in caplog.text


@pytest.mark.parametrize("status", [400, 404, 409, 500])
@pytest.mark.parametrize(
    "message",
    [
        f"open /var/lib/docker/overlay2/{SECRET}/merged/etc/passwd: strange",
        f"failed to create shim task: OCI runtime create failed: {SECRET}: unknown",
        f"read /var/lib/nova/{SECRET}: permission denied",
        f"No such image: {SECRET}",
        f"Container {SECRET} is not running",
        f'error mounting "/srv/{SECRET}" to rootfs at "/x": no such file or directory',
    ],
)
def test_a_fault_shows_nothing_unknown_of_the_engines_message(
    tmp_path: Path, status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    # A load reports its error in the body.
    handler = type("Handler", (Refusing,), {"status": status, "message": message})
    loading = type("Handler", (Refusing,), {"status": 200, "message": message})
    with (
        engine_with(tmp_path / "1", handler) as asked,
        engine_with(tmp_path / "2", loading) as sent,
    ):
        for request in (
            lambda: asked.start_container("c"),
            lambda: asked.create_container(SPEC),
            lambda: asked.signal_container("c", "SIGTERM"),
            lambda: asked.open_terminal("c", ["sh"]),
            lambda: asked.load_image(iter([b""])),
            lambda: sent.load_image(iter([b""])),
            lambda: sent.unpack_layer(iter([b""]), "r", "t"),
        ):
            caplog.clear()
            with pytest.raises(exception.EngineError) as caught:
                request()
            shown = "".join(traceback.format_exception(caught.value))
            assert SECRET not in shown
            assert SECRET in caplog.text


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (404, "No such image: web:1", exception.EngineImageNotFound),
        (404, "No such container: c", exception.ContainerNotFound),
        (404, "anything", exception.ContainerNotFound),
        (409, "No such image: web:1", exception.EngineError),
    ],
)
def test_what_is_missing(tmp_path: Path, status: int, message: str, expected: Any) -> None:
    handler = type("Handler", (Refusing,), {"status": status, "message": message})
    with engine_with(tmp_path / "s", handler) as asked, pytest.raises(exception.EngineError) as got:
        asked.start_container("c")
    assert type(got.value) is expected


@pytest.mark.parametrize(
    ("message", "warnings"),
    [
        ("Container c is not running", 0),
        ("No such container: c", 0),
        ("open /var/lib/docker/f: no space left on device", 1),
        ("anything", 1),
    ],
)
def test_a_message_that_says_more_than_the_fault_is_a_warning(
    tmp_path: Path, message: str, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    handler = type("Handler", (Refusing,), {"status": 409, "message": message})
    with engine_with(tmp_path / "s", handler) as asked, pytest.raises(exception.EngineError):
        asked.start_container("c")
    found = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(found) == warnings
    assert all(message in record.getMessage() for record in found)


def test_a_file_that_is_missing_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = type("Handler", (Refusing,), {"status": 404, "message": "x"})
    with engine_with(tmp_path / "s", handler) as asked:
        assert not asked.has_file("c", "/bin/login")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An engine that answers every request and counts its open connections."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.open = 0
        super().__init__(path, Answer)


class Answer(http.server.BaseHTTPRequestHandler):
    """A response of the daemon; the connection stays open for the next request."""

    server: Daemon

    def setup(self) -> None:
        super().setup()
        self.server.open += 1

    def finish(self) -> None:
        self.server.open -= 1
        super().finish()

    def do_GET(self) -> None:
        body = json.dumps({"ApiVersion": "1.41", "Id": "c", "Running": False, "Pid": 0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing."""


def test_one_connection_however_many_containers_are_asked_for(tmp_path: Path) -> None:
    with Daemon(str(tmp_path / "docker.sock")) as daemon:
        threading.Thread(target=daemon.serve_forever, daemon=True).start()
        asked = client.Engine(f"unix://{tmp_path}/docker.sock", 10, 10)
        for number in range(30):
            asked.terminal_process(Terminal(socket.socket(), b"", f"/exec/{number}"))
        deadline = time.monotonic() + 10
        while daemon.open > 1:
            assert time.monotonic() < deadline, f"{daemon.open} connections stay open"
            time.sleep(0.01)
        daemon.shutdown()


def test_the_timeout_of_a_thread_is_shortened_for_one_block_only(tmp_path: Path) -> None:
    """The engine is away, answers in a block, and answers after it."""
    asked = client.Engine(f"unix://{tmp_path}/docker.sock", 10, 10)
    with pytest.raises(exception.EngineUnavailable), asked.within(3):
        asked.info()
    assert asked._timeout == 10
    with Daemon(str(tmp_path / "docker.sock")) as daemon:
        threading.Thread(target=daemon.serve_forever, daemon=True).start()
        for number in range(2):
            with asked.within(3), asked.within(5):
                asked.terminal_process(Terminal(socket.socket(), b"", f"/exec/{number}"))
                assert (asked._timeout, asked._client.timeout) == (3, 3)
            assert (asked._timeout, asked._client.timeout) == (10, 10)
        daemon.shutdown()


def test_a_terminal_without_its_size_is_the_caller_s_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resize(*_: object) -> None:
        raise exception.EngineUnavailable(url="unix:///x", reason="a test")

    terminal = Terminal(socket.socket(), b"", "/exec/1")
    created = types.SimpleNamespace(exec_create=lambda *_, **__: {"Id": "1"})
    monkeypatch.setattr(client.Engine, "_client", created)
    monkeypatch.setattr(client.Engine, "_upgrade", lambda *_: terminal)
    monkeypatch.setattr(client.Engine, "resize_terminal", resize)
    asked = client.Engine("unix:///x", 10, 10)
    assert asked.open_terminal("c", ["sh"]) is terminal
    terminal.connection.close()


_ENCRYPTED = """
import http.server, json, ssl, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"ApiVersion": "1.41", "Id": "c", "Running": False, "Pid": 0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{sys.argv[1]}.pem", f"{sys.argv[1]}.key")
context.load_verify_locations(f"{sys.argv[1]}.pem")
context.verify_mode = ssl.CERT_REQUIRED
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address and directory of an engine that requires its own certificate by TLS."""
    for name in ("engine", "other"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
        command += ["ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        command += ["-keyout", f"{tmp_path}/{name}.key", "-out", f"{tmp_path}/{name}.pem"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    # The server is a separate process, because with Nova 31 this process's threads are eventlet's.
    with subprocess.Popen(
        [sys.executable, "-c", _ENCRYPTED, f"{tmp_path}/engine"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield f"https://127.0.0.1:{int(server.stdout.readline())}", tmp_path
        server.terminate()


def tls(folder: Path, ca: str, own: str) -> Tls:
    return Tls(
        str(folder / f"{ca}.pem") if ca else "",
        str(folder / f"{own}.pem") if own else "",
        str(folder / f"{own}.key") if own else "",
    )


@dataclass
class Options:
    api_url: str
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    api_timeout: int = 3
    image_load_timeout: int = 7


def test_an_engine_of_options(encrypted: tuple[str, Path]) -> None:
    url, folder = encrypted
    files = (f"{folder}/engine.pem", f"{folder}/engine.pem", f"{folder}/engine.key")
    asked = client.Engine.from_options(Options(url, *files))
    assert asked.terminal_process(Terminal(socket.socket(), b"", "/exec/1")) == 0
    assert (asked._timeout, asked._load_timeout) == (3, 7)
    asked = client.Engine.from_options(Options(url, *files), timeout=5)
    assert (asked._timeout, asked._load_timeout) == (5, 5)


def test_an_engine_that_proves_who_it_is(encrypted: tuple[str, Path]) -> None:
    url, folder = encrypted
    asked = client.Engine(url, 10, 10, tls(folder, "engine", "engine"))
    assert asked.terminal_process(Terminal(socket.socket(), b"", "/exec/1")) == 0


@pytest.mark.parametrize(
    ("ca", "own"), [("", "engine"), ("other", "engine"), ("engine", ""), ("engine", "other")]
)
def test_an_engine_that_does_not_and_one_that_does_not_know_us(
    encrypted: tuple[str, Path], ca: str, own: str
) -> None:
    url, folder = encrypted
    with pytest.raises(exception.EngineUnavailable):
        client.Engine(url, 10, 10, tls(folder, ca, own)).info()


@pytest.mark.parametrize("given", [{"ca": "/no/such"}, {"certificate": "/no/such", "key": "/x"}])
def test_files_of_tls_that_are_not_there(given: dict[str, str]) -> None:
    with pytest.raises(exception.InvalidConfiguration):
        client.Engine("https://127.0.0.1:1", 10, 10, Tls(**given)).info()


class Unpacking(Refusing):
    """An engine that unpacks one large file, of which it tells nothing, until the client leaves."""

    # less than the client's
    timeout = 5
    left: ClassVar[threading.Event] = threading.Event()

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        line = json.dumps({"id": "a", "status": "Extracting", "progressDetail": {"current": 1}})
        self.wfile.write(f"{len(line) + 1:x}\r\n{line}\n\r\n".encode())
        self.wfile.flush()
        if not self.rfile.read(1):
            self.left.set()

    def do_DELETE(self) -> None:
        self._send(404, {"message": "No such image: r.example/web"})


def test_a_pull_that_fills_the_disk_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter((1000, 900))
    monkeypatch.setattr(pull_bounds, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(pull_bounds.PullBounds, "_free_now", lambda _: next(free, 499))
    with (
        engine_with(tmp_path / "docker.sock", Unpacking) as asked,
        pytest.raises(exception.PullCutOff, match="not enough free space"),
    ):
        asked.pull_image("r.example/web", "sha256:1", "r.example", "", str(tmp_path))
    assert Unpacking.left.wait(20)
