# SPDX-License-Identifier: Apache-2.0
"""The downtime of a server that writes while it moves to another host.

``make bench-migrate``; docs/benchmarks.rst explains each figure. The same run measures the driver's
ancestor's method with the same container: commit, push and pull.
"""

import contextlib
import datetime
import re
import sys
import time
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# tests selects the threading mode of Nova, which must precede any import of eventlet.
import tests  # noqa: F401, I001

import docker
from oslo_utils import timeutils

from benchmarks import figures, program
from devcloud.clients import connect
from devcloud.services import open_hosts
from devcloud.settings import API_ADDRESS, Host, Settings, load_settings
from devcloud.steps import StepFailed, step
from tests.cloud.guests import Guest
from tests.cloud.servers import Servers

MIB = 1 << 20
CHANGED_MIB_A_SECOND = 5
WARM_UP_SECONDS = 5
REGISTRY = f"{API_ADDRESS}:5001"
REPOSITORY = f"{REGISTRY}/benchmark"

# The script writes five times a second and records the times. The number of files bounds its disk
# use.
WRITE = """
cd /srv && head -c {size}M /dev/urandom >data && sync
cat >write <<'END'
i=0
while :; do
  head -c {a_fifth}K /dev/urandom >change$((i % 50)); i=$((i + 1))
  date +%s.%N >>stamps; sleep 0.2
done
END
nohup sh write >/dev/null 2>&1 &
"""

DOWN = "move: seconds from the last sign of life until all data is there"
SENT, WRITTEN = "MiB sent", "MiB that the server had written"

DOWN_SECONDS = 3.0
WIRE_RATIO = 1.1


def sent(log: Path, begin: int) -> tuple[float, float]:
    """Return the MiB sent and the end of the transfer, from a position in nova-compute's log.

    The time is in seconds since 1970.
    """
    with log.open(errors="replace") as lines:
        lines.seek(begin)
        found = re.findall(r"^(\S+ \S+) .* Sent ([\d.]+) MiB", lines.read(), re.MULTILINE)
    last = datetime.datetime.fromisoformat(found[-1][0]).astimezone()
    return sum(float(amount) for _, amount in found), last.timestamp()


def engine_of(settings: Settings, host: Host) -> docker.APIClient:
    """Connect to a host's engine, with a timeout that suffices for the push of a large layer."""
    return docker.APIClient(f"unix://{settings.engine_socket(host)}", version="auto", timeout=600)


def commit_push_pull(source: docker.APIClient, target: docker.APIClient, name: str) -> float:
    """Move an image as the ancestor did; return the seconds, and delete the image."""
    begin = time.monotonic()
    source.commit(name, repository=REPOSITORY, tag="1")
    try:
        for engine, verb in ((source, source.push), (target, target.pull)):
            for line in verb(REPOSITORY, tag="1", stream=True, decode=True):
                if "error" in line:
                    raise StepFailed(f"{verb.__name__}: {line['error']}", f"{engine.base_url}")
        return time.monotonic() - begin
    finally:
        for engine in (source, target):
            with contextlib.suppress(docker.errors.ImageNotFound):
                engine.remove_image(f"{REPOSITORY}:1", force=True)


def measure(settings: Settings, size: int) -> dict[str, float]:
    """Run all measurements, then delete everything that they created."""
    with (
        connect(settings, "demo") as demo,
        connect(settings, "admin") as admin,
        open_hosts(admin, settings, settings.hosts),
        contextlib.ExitStack() as stack,
    ):
        servers = Servers(demo)
        stack.callback(servers.delete_all)
        with step(f"a server with {size} MiB of data"):
            server = servers.create("mover", image="debian", flavor="d1.small", key_name="demo")
            network = demo.network.find_network("private").id
            guest = Guest(settings, server, settings.tenant_namespace(network))
            guest.wait()
            fifth = CHANGED_MIB_A_SECOND * 1024 // 5
            guest.ask("sudo sh", WRITE.format(size=size, a_fifth=fifth))
            time.sleep(WARM_UP_SECONDS)
        name = f"nova-{server.id}"
        by_name = {host.name: host for host in settings.hosts}
        source = by_name.pop(admin.compute.get_server(server.id).hypervisor_hostname)
        (target,) = by_name.values()
        engines = [
            stack.enter_context(contextlib.closing(engine_of(settings, host)))
            for host in (source, target)
        ]
        with step("commit, push, pull"):
            plain = commit_push_pull(engines[0], engines[1], name)
        log = settings.log / f"nova-compute-{source.name}.log"
        begin = log.stat().st_size
        with step("the driver's move"):
            started = time.monotonic()
            admin.compute.migrate_server(server.id)
            servers.wait(server, lambda now: now.status in ("VERIFY_RESIZE", "ERROR"))
            whole = time.monotonic() - started
        found = engines[1].inspect_container(name)["State"]["StartedAt"]
        guest.wait()
        last = float(guest.ask("sudo tail -n 1 /srv/stamps"))
        changed = float(guest.ask("sudo du -sm --apparent-size /srv").split()[0])
        demo.compute.confirm_server_resize(server)
        servers.wait(server, lambda now: now.status == "ACTIVE")
    amount, kept = sent(log, begin)
    begun = timeutils.parse_isotime(f"{found[:26]}Z").timestamp()
    return {
        "commit, push, pull: seconds, all of them without the server": plain,
        "move: seconds": whole,
        DOWN: kept - last,
        "move: seconds until it starts, with all that Nova and Neutron do": begun - last,
        SENT: amount,
        WRITTEN: changed,
    }


def report(results: dict[str, float]) -> program.Report:
    """Return the report of the results."""
    targets = [
        figures.Target("seconds without the server, before its start", results[DOWN], DOWN_SECONDS),
        figures.Target("MiB sent over MiB written", results[SENT] / results[WRITTEN], WIRE_RATIO),
    ]
    text = "\n".join(f"  {what:<72}{value:>10.2f}" for what, value in results.items())
    return program.Report(text, targets, results)


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "migrate")
    parser.add_argument(
        "--size", type=int, default=1024, help="size of the data in MiB (default: 1024)"
    )
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: report(measure(load_settings(), arguments.size)))


if __name__ == "__main__":
    sys.exit(main())
