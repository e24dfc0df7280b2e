# SPDX-License-Identifier: Apache-2.0
"""The runtime shim beside runc: how much longer the engine waits for each call.

``make bench-shim``; docs/benchmarks.rst explains each figure. The benchmark needs root, runc and
busybox, but neither the cloud nor an engine.
"""

import contextlib
import io
import json
import os
import secrets
import select
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# tests selects the threading mode of Nova, which must precede any import of eventlet.
import tests  # noqa: F401, I001

from benchmarks import figures, program
from novadocker import privsep
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from tests.engine.busybox import busybox_archive
from tests.engine.engines import SHIM

RUNC = "runc create"
NOTHING = "a program that does nothing"
FIRST = "shim create, first start"
LATER = "shim create, later start"
OTHER = "shim state"

# An engine waits for one create and about five other calls in each start.
TARGETS = {FIRST: 15.0, LATER: 12.0, OTHER: 3.0}
"""How many ms a call may take longer than a program that does nothing."""

_SECONDS = 60
# That of the engine's unit; a python3 elsewhere may be a script, as pyenv's.
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What nova-compute writes for the first start of a server with a key and a password.
_ETC = {
    "hostname": b"web-1\n",
    "hosts": b"127.0.0.1 localhost\n10.7.0.5 web-1\n",
    "resolv.conf": b"nameserver 10.7.0.1\n",
    "machine-id": b"0123456789abcdef0123456789abcdef\n",
}
_LOGIN = runtime.Login(
    user="root",
    keys=b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO0 benchmark\n",
    password_hash="$6$" + "a" * 86,
    password_day=20_000,
)


@dataclass(frozen=True)
class Calls:
    """Calls of runc or of the shim for containers of one instance.

    :ivar folder: of the bundle, and of runc's state
    :ivar configuration: content of ``config.json`` before the shim changes it
    """

    folder: Path
    instance: str
    configuration: Mapping[str, Any]

    def create(self, path: str | Path, first: bool = False) -> float:
        """Create a container and delete it; return the seconds of ``create``.

        :param path: of the runtime
        :param first: whether the driver has files for the container
        """
        container = secrets.token_hex(32)
        (self.folder / "config.json").write_text(json.dumps(self.configuration))
        runtime.bind_container(container, self.instance, *((_ETC, asdict(_LOGIN)) if first else ()))
        try:
            words = ["create", "--bundle", str(self.folder), "--pid-file", f"{self.folder}/pid"]
            return self.call(path, [*words, container])
        finally:
            runtime.release_container(container)
            if path == "runc":
                self.call(path, ["delete", "--force", container])

    def call(self, path: str | Path, words: Sequence[str]) -> float:
        """Call a runtime as containerd does; return the seconds until its end.

        The runc that the shim executes does nothing.
        """
        log = f"{self.folder}/log.json"
        options = ["--root", f"{self.folder}/state", "--log", log, "--log-format", "json"]
        search = _SEARCH if path == "runc" else f"{self.folder}/bin:{_SEARCH}"
        begin = time.perf_counter()
        # The container's first process would keep a pipe open.
        process = subprocess.Popen(
            [str(path), *options, *words],
            env={"PATH": search},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with process:
            if not _wait(process.pid):
                process.kill()
        taken = time.perf_counter() - begin
        subprocess.CompletedProcess(process.args, process.returncode).check_returncode()
        return taken


def _wait(pid: int) -> bool:
    """Wait for the end of a process; return False if it has not ended in time.

    A wait of ``subprocess`` with a timeout looks for the end after 0.5, 1.5, 3.5, 7.5, 15.5 ms.
    """
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], _SECONDS)[0])
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def prepared() -> Iterator[Calls]:
    """Yield the calls for a container of busybox; delete everything at the end."""
    privsep.network_pctxt.set_client_mode(False)
    instance = str(uuid.uuid4())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tarfile.open(fileobj=io.BytesIO(busybox_archive())) as archive:
            archive.extractall(folder / "rootfs")
        (folder / "rootfs/etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (folder / "rootfs/etc/shadow").write_text("root:*:20000:0:99999:7:::\n")
        (folder / "bin").mkdir()
        (folder / "bin/runc").symlink_to("/bin/true")
        subprocess.run(["runc", "spec"], cwd=folder, check=True)
        configuration = json.loads((folder / "config.json").read_text())
        configuration["root"] = {"path": str(folder / "rootfs")}
        configuration["process"] |= {"terminal": False, "args": ["sleep", "1d"]}
        try:
            namespace.wire_nics(instance, [])
            yield Calls(folder, instance, configuration)
        finally:
            runtime.delete_namespace(instance)


def measure(rounds: int) -> program.Report:
    """Call runc and the shim alternately; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in (RUNC, NOTHING, FIRST, LATER, OTHER)}
    with prepared() as calls:
        nothing = calls.folder / "bin/runc"
        for number in range(rounds + 1):
            taken = {
                RUNC: calls.create("runc"),
                NOTHING: calls.call(nothing, ["state", "0"]),
                FIRST: calls.create(SHIM, first=True),
                LATER: calls.create(SHIM),
                OTHER: calls.call(SHIM, ["state", "0"]),
            }
            if number:
                for name, seconds in taken.items():
                    found[name].append(seconds)
    return report(found)


def report(found: Mapping[str, Sequence[float]]) -> program.Report:
    """Return the report of the seconds of each kind of call."""
    rows = figures.summaries(found)
    more = {name: (rows[name].median - rows[NOTHING].median) * 1000 for name in TARGETS}
    targets = [
        figures.Target(f"ms: {name} - {NOTHING}", more[name], most)
        for name, most in TARGETS.items()
    ]
    shares = (f"{name}: {more[name] / 10 / rows[RUNC].median:.0f} % of {RUNC}" for name in TARGETS)
    text = "\n".join((figures.table("Calls of the runtime", "ms", rows, 1000), *shares))
    return program.Report(text, targets, {"seconds": found})


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "shim")
    parser.add_argument("--rounds", type=int, default=100, help="of each kind (default: 100)")
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: measure(arguments.rounds))


if __name__ == "__main__":
    sys.exit(main())
