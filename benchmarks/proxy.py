# SPDX-License-Identifier: Apache-2.0
"""The proxy of the engine's socket beside the socket: time of a request, CPU time of the data.

``make bench-proxy``; docs/benchmarks.rst explains each figure. The benchmark needs root, dockerd
and busybox, but not the cloud: it starts an engine of its own.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# tests selects the threading mode of Nova, which must precede any import of eventlet.
import tests  # noqa: F401, I001

import docker
import psutil

from benchmarks import figures, program
from novadocker import naming
from novadocker.virt.docker.engine.client import Engine
from tests import CHECKOUT
from tests.engine import daemons
from tests.engine.busybox import busybox_archive
from tests.engine.engines import OwnEngine, remove_containers

SOCKET, PROXY = "the engine's socket", "the proxy"
REQUESTS = {"inspection of a container": "inspect", "list of the containers": "list"}
LOAD, SAVE = "load of an image", "save of an image"

REQUEST_MS = 2.0
MEBIBYTE_MS = 2.0

_REQUESTS_A_ROUND = 20
_MEBIBYTES = 64
_SECONDS = 60
_START = """
import os, sys
from novadocker.cmd import engine_proxy
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
engine_proxy.main(sys.argv[2:])
"""


@dataclass(frozen=True)
class Ways:
    """The ways to an engine with one server.

    :ivar clients: the driver's clients by the way
    :ivar container: name of the server's container
    :ivar archive: an image in the form in which the driver sends it
    :ivar proxy: the process of the proxy
    """

    clients: Mapping[str, Engine]
    container: str
    archive: bytes
    proxy: psutil.Process

    def proxy_seconds(self) -> float:
        """Return the CPU time of the proxy until now."""
        used = self.proxy.cpu_times()
        return used.user + used.system


def measure(rounds: int) -> program.Report:
    """Use both ways alternately; the first round does not count."""
    seconds: dict[str, list[float]] = {
        f"{what}, {way}": [] for what in (*REQUESTS, LOAD, SAVE) for way in (SOCKET, PROXY)
    }
    cpu: dict[str, list[float]] = {what: [] for what in (*REQUESTS, LOAD, SAVE)}
    with _engine() as (engine, folder), _ways(engine, folder) as ways:
        for number in range(rounds + 1):
            for way in (SOCKET, PROXY) if number % 2 else (PROXY, SOCKET):
                for what, (taken, used) in _use(ways, way).items():
                    if number:
                        seconds[f"{what}, {way}"].append(taken)
                    if number and way == PROXY:
                        cpu[what].append(used)
    return report(seconds, cpu)


def report(seconds: Mapping[str, list[float]], cpu: Mapping[str, list[float]]) -> program.Report:
    """Return the report.

    :param seconds: of a request, by what and way
    :param cpu: seconds of the proxy for a request or a MiB, by what
    """
    rows = figures.summaries(seconds)
    targets = [
        figures.Target(
            f"ms: {what}, {PROXY} - {SOCKET}",
            (rows[f"{what}, {PROXY}"].median - rows[f"{what}, {SOCKET}"].median) * 1000,
            REQUEST_MS,
        )
        for what in REQUESTS
    ]
    used = figures.summaries(cpu)
    targets += [
        figures.Target(f"ms of CPU time for a MiB: {what}", used[what].median * 1000, MEBIBYTE_MS)
        for what in (LOAD, SAVE)
    ]
    text = "\n\n".join(
        (
            figures.table("Duration of a request", "ms", rows, 1000),
            figures.table("CPU time of the proxy for a request, or for a MiB", "ms", used, 1000),
        )
    )
    return program.Report(text, targets, {"seconds": seconds, "proxy_cpu_seconds": cpu})


def _use(ways: Ways, way: str) -> dict[str, tuple[float, float]]:
    """Return the seconds, and the CPU seconds of the proxy for a request or a MiB, by what."""
    client = ways.clients[way]
    found = {}
    for what, name in REQUESTS.items():
        used, begin = ways.proxy_seconds(), time.perf_counter()
        for _ in range(_REQUESTS_A_ROUND):
            if name == "inspect":
                client.inspect_container(ways.container)
            else:
                client.list_containers(naming.SERVER_FILTER)
        taken = time.perf_counter() - begin
        used = ways.proxy_seconds() - used
        found[what] = (taken / _REQUESTS_A_ROUND, used / _REQUESTS_A_ROUND)
    used, begin = ways.proxy_seconds(), time.perf_counter()
    chunk = 1 << 20
    image = client.load_image(
        ways.archive[start : start + chunk] for start in range(0, len(ways.archive), chunk)
    )
    found[LOAD] = (time.perf_counter() - begin, (ways.proxy_seconds() - used) / _MEBIBYTES)
    used, begin = ways.proxy_seconds(), time.perf_counter()
    for _ in client.save_image(image):
        pass
    found[SAVE] = (time.perf_counter() - begin, (ways.proxy_seconds() - used) / _MEBIBYTES)
    client.remove_image(image)
    return found


@contextlib.contextmanager
def _engine() -> Iterator[tuple[OwnEngine, Path]]:
    """Yield an engine without images, and the directory of its files."""
    folder, lock = daemons.make_state_folder()
    try:
        (folder / "docker").mkdir()
        engine = OwnEngine(folder / "docker")
        try:
            yield engine, folder
        finally:
            remove_containers(engine.url)
            engine.stop()
    finally:
        daemons.clear(folder)
        lock.close()


@contextlib.contextmanager
def _ways(engine: OwnEngine, folder: Path) -> Iterator[Ways]:
    """Yield the ways to an engine, in which there is a server."""
    instance = str(uuid.uuid4())
    with contextlib.closing(docker.APIClient(base_url=engine.url, timeout=_SECONDS)) as client:
        client.import_image_from_data(busybox_archive(), repository="busybox", tag="bench")
        labels = {naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: instance}
        client.create_container(
            "busybox:bench", ["sleep", "1d"], name=f"nova-{instance}", labels=labels
        )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "proxy"))
        listener.listen(64)
        command = [sys.executable, "-c", _START, str(listener.fileno())]
        process = subprocess.Popen(
            [*command, "--engine-socket", engine.url.removeprefix("unix://")],
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        try:
            yield Ways(
                {
                    way: Engine(url, timeout=_SECONDS, load_timeout=_SECONDS)
                    for way, url in ((SOCKET, engine.url), (PROXY, f"unix://{folder}/proxy"))
                },
                f"nova-{instance}",
                _archive(),
                psutil.Process(process.pid),
            )
        finally:
            daemons.stop(process)


def _archive() -> bytes:
    """Return an image with one layer of 64 MiB, as the driver writes it for the engine."""
    layer = _tar({"data": secrets.token_bytes(_MEBIBYTES << 20)})
    digest = hashlib.sha256(layer).hexdigest()
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    content = json.dumps(configuration).encode()
    name = f"{hashlib.sha256(content).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": None, "Layers": [f"{digest}.tar"]}]
    return _tar(
        {
            f"{digest}.tar": layer,
            name: content,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "proxy")
    parser.add_argument("--rounds", type=int, default=20, help="of each kind (default: 20)")
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: measure(arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
