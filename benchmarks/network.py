# SPDX-License-Identifier: Apache-2.0
"""Networks side by side: host, Linux bridge, Open vSwitch, Docker's own NAT bridge.

``make bench-network``; docs/benchmarks.rst explains each figure. The benchmark creates everything
in its own network namespaces and deletes them at its end.
"""

import json
import re
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

# A script's own directory is in sys.path, but the checkout is not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# tests selects the threading mode of Nova, which must precede any import of eventlet.
import tests  # noqa: F401, I001

import docker

from benchmarks import figures, program
from novadocker import privsep
from novadocker.privsep.network import namespace as network_namespace
from novadocker.privsep.guest import runtime
from novadocker.linux import namespaces
from novadocker.privsep.network.types import Bridge
from novadocker.privsep.network.types import Nic
from novadocker.privsep.network.types import Route
from tests.engine import daemons, switch
from tests.engine.busybox import busybox_archive

HOST, BRIDGE, SWITCH, NAT = "host's veth", "Linux bridge", "Open vSwitch", "Docker's NAT bridge"
KERNEL_DATAPATH = Path("/sys/module/openvswitch")
FAR = "bench-far"
NAT_HOST = "bench-nat"

SMALL_PACKET_BYTES = 64
PINGS = 200
WIRED_PORTS = 20

# The project's targets: a share of at least 0.95 is a baseline of at most 1/0.95.
BASELINE_OVER_OURS = 1 / 0.95
NAT_OVER_BRIDGE = 1 / 1.4
WIRING_MS = 8.0


@dataclass(frozen=True)
class Way:
    """A path to the far end: the namespace where it starts, and the far end's address on it."""

    namespace: str | None
    target: str


def run(*command: str | Path, namespace: str | None = None) -> str:
    """Run a command, optionally in a network namespace, and return its output."""
    enter = [] if namespace is None else ["nsenter", f"--net={namespace}"]
    done = subprocess.run([*enter, *command], check=True, capture_output=True, text=True)
    return done.stdout


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """Create a network namespace and yield its path."""
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield f"{network_namespace.NAMESPACES}/{name}"
    finally:
        run("ip", "netns", "delete", name)


def cable(number: int) -> str:
    """Create a veth pair to the far end, which has the first address of the network."""
    name = f"phys{number}"
    run("ip", "link", "add", name, "type", "veth", "peer", f"far{number}", "netns", FAR)
    run("ip", "-n", FAR, "address", "add", f"10.99.{number}.1/24", "dev", f"far{number}")
    run("ip", "-n", FAR, "link", "set", f"far{number}", "up")
    run("ip", "link", "set", name, "up")
    return name


def nic(number: int, index: int, bridge: Bridge | None, datapath: str | None = None) -> Nic:
    """Return a port for the driver to wire."""
    port = str(uuid.uuid4())
    return Nic(
        port_id=port,
        host_device=f"tap{port}"[:14],
        guest_device="eth0",
        mac=f"fa:16:3e:00:{number:02x}:{index:02x}",
        mtu=1500,
        addresses=(f"10.99.{number}.{index}/24",),
        routes=(Route("0.0.0.0/0", f"10.99.{number}.1"),),
        software_checksums=datapath == "netdev",
        bridge=bridge,
    )


@contextmanager
def server(port: Nic) -> Iterator[str]:
    """Wire a port into its own namespace, as the driver does for a server, and yield the path."""
    instance = str(uuid.uuid4())
    bridge = None if port.bridge is None else asdict(port.bridge)
    try:
        network_namespace.wire_nics(instance, [asdict(port)])
        yield network_namespace.namespace_path(instance)
    finally:
        network_namespace.unwire_nic(instance, port.host_device, bridge)
        runtime.delete_namespace(instance)


@contextmanager
def docker_container(folder: Path, archive: bytes) -> Iterator[str]:
    """Start an engine with its NAT bridge in its own namespace, and a container on the bridge.

    Yields the path of the container's network namespace. The engine enables iptables for bridges,
    which must not affect the other bridges.
    """
    with namespace(NAT_HOST) as path:
        run("ip", "link", "add", "phys3", "type", "veth", "peer", "far3", "netns", FAR)
        run("ip", "link", "set", "phys3", "netns", NAT_HOST)
        for name, end, address in ((FAR, "far3", "10.99.3.1"), (NAT_HOST, "phys3", "10.99.3.2")):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", end)
            run("ip", "-n", name, "link", "set", end, "up")
        url = f"unix://{folder}/docker.sock"
        config = {
            "data-root": f"{folder}/data",
            "exec-root": f"{folder}/exec",
            "pidfile": f"{folder}/pid",
            "hosts": [url],
            "bip": "172.30.0.1/24",
            "userland-proxy": False,
        }
        (folder / "daemon.json").write_text(json.dumps(config))
        engine = daemons.start(
            ["nsenter", f"--net={path}", "dockerd", "--config-file", f"{folder}/daemon.json"],
            folder / "log",
            (folder / "docker.sock").exists,
        )
        client = docker.APIClient(base_url=url, timeout=60)
        try:
            client.import_image_from_data(archive, repository="bench", tag="1")
            made = client.create_container("bench:1", ["sleep", "3600"])
            client.start(made)
            pid = client.inspect_container(made)["State"]["Pid"]
            yield f"/proc/{pid}/ns/net"
            client.remove_container(made, force=True)
        finally:
            client.close()
            daemons.stop(engine)


def iperf(way: Way, *options: str) -> dict[str, float]:
    """Send to the far end and return the bits or packets that arrive per second."""
    serve = [
        "nsenter",
        f"--net={network_namespace.NAMESPACES}/{FAR}",
        "iperf3",
        "-s",
        "-1",
        "-B",
        way.target,
    ]
    with subprocess.Popen(
        [*serve, "--forceflush"],
        stdout=subprocess.PIPE,
        # iperf3 reports that SIGTERM ended it.
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            while "listening" not in process.stdout.readline():
                pass
            shown = run("iperf3", "-J", "-c", way.target, *options, namespace=way.namespace)
        finally:
            process.send_signal(signal.SIGTERM)
    end = json.loads(shown)["end"]
    if "-u" in options:
        total = end["sum"]
        arrived = total["packets"] - total["lost_packets"]
        return {"packets": arrived / total["seconds"]}
    return {"bits": end["sum_received"]["bits_per_second"]}


def round_trip_ms(way: Way) -> float:
    """Return the mean round-trip time to the far end."""
    shown = run(
        *("ping", "-q", "-i", "0.002", "-c", str(PINGS), way.target), namespace=way.namespace
    )
    found = re.search(r"= [\d.]+/([\d.]+)/", shown)
    assert found is not None
    return float(found[1])


def wiring_ms(number: int, bridge: Bridge | None, datapath: str | None) -> list[float]:
    """Wire ports of new servers sequentially and return the duration of each."""
    samples = []
    with ExitStack() as stack:
        for index in range(WIRED_PORTS):
            port = nic(number, 10 + index, bridge, datapath)
            begin = time.perf_counter()
            stack.enter_context(server(port))
            samples.append((time.perf_counter() - begin) * 1000)
    return samples


def measure(ways: dict[str, Way], rounds: int, seconds: int) -> dict[str, dict[str, list[float]]]:
    """Measure all paths in each round; each round begins with another path."""
    duration = ("-t", str(seconds))
    small = ("-u", "-b", "0", "-l", str(SMALL_PACKET_BYTES), *duration)
    kinds: dict[str, Callable[[Way], float]] = {
        "bulk": lambda way: iperf(way, *duration)["bits"] / 1e6,
        "small": lambda way: iperf(way, *small)["packets"] / 1e3,
        "round trip": round_trip_ms,
    }
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in ways} for kind in kinds}
    names = list(ways)
    for number in range(rounds):
        first = number % len(names)
        for kind, ask in kinds.items():
            for name in names[first:] + names[:first]:
                found[kind][name].append(ask(ways[name]))
    return found


def over(first: list[float], second: list[float]) -> float:
    """Return the median of the rounds' ratios, because a fast minute affects both of a round."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def report(samples: dict[str, dict[str, list[float]]], datapath: str) -> program.Report:
    """Return the report of the results, with the targets that this kernel can measure."""
    rows = {kind: figures.summaries(found) for kind, found in samples.items()}
    text = [
        figures.table(title, unit, rows[kind])
        for kind, title, unit in (
            ("bulk", "Bulk TCP", "Mbit/s"),
            ("small", f"UDP packets of {SMALL_PACKET_BYTES} bytes that arrive", "1000 packets/s"),
            ("round trip", "Round-trip time", "ms"),
            ("wiring", "Wiring of a port", "ms"),
        )
    ]
    bulk, small = samples["bulk"], samples["small"]
    ours = [BRIDGE, *([SWITCH] if datapath == "system" else [])]
    if SWITCH not in ours:
        text.append(
            "This kernel has no Open vSwitch datapath, so Open vSwitch's target is not measured."
        )
    targets = [
        *(
            figures.Target(
                f"bulk TCP, host over {name}",
                over(bulk[HOST], bulk[name]),
                BASELINE_OVER_OURS,
            )
            for name in ours
        ),
        figures.Target(
            "small packets, Docker's NAT over Linux bridge",
            over(small[NAT], small[BRIDGE]),
            NAT_OVER_BRIDGE,
        ),
        *(
            figures.Target(f"ms to wire a port, {name}", row.median, WIRING_MS)
            for name, row in rows["wiring"].items()
        ),
    ]
    return program.Report("\n\n".join(text), targets, {"datapath": datapath, "samples": samples})


def keep_iptables_off_bridges() -> None:
    """Keep iptables off bridges in this network namespace, as docs/networks.rst requires."""
    for setting in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        setting.write_text("0")


def measure_all(
    state: Path, rounds: int, seconds: int
) -> tuple[dict[str, dict[str, list[float]]], str]:
    """Create all networks and measure them; return the samples and Open vSwitch's datapath."""
    datapath = "system" if KERNEL_DATAPATH.exists() else "netdev"
    run("ip", "link", "set", "lo", "up")
    keep_iptables_off_bridges()
    with ExitStack() as stack:
        stack.enter_context(namespace(FAR))
        run("ip", "address", "add", "10.99.0.2/24", "dev", cable(0))
        bridge = Bridge("brq00000000-00", cable(1))
        bridged = stack.enter_context(server(nic(1, 2, bridge)))
        ovs = switch.Switch(state / "ovs")
        ovs.start()
        stack.callback(ovs.stop)
        ovs.vsctl("add-br", "bench", "--", "set", "bridge", "bench", f"datapath_type={datapath}")
        stack.callback(ovs.vsctl, "del-br", "bench")
        port = nic(2, 2, None, datapath)
        switched = stack.enter_context(server(port))
        for device in (cable(2), port.host_device):
            ovs.vsctl("add-port", "bench", device)
        if datapath == "netdev":
            run(
                "ethtool",
                "-K",
                "far2",
                "tx",
                "off",
                namespace=f"{network_namespace.NAMESPACES}/{FAR}",
            )
        folder = state / "docker"
        folder.mkdir()
        contained = stack.enter_context(docker_container(folder, busybox_archive()))
        ways = {
            HOST: Way(None, "10.99.0.1"),
            BRIDGE: Way(bridged, "10.99.1.1"),
            SWITCH: Way(switched, "10.99.2.1"),
            NAT: Way(contained, "10.99.3.1"),
        }
        samples = measure(ways, rounds, seconds)
        samples["wiring"] = {
            BRIDGE: wiring_ms(1, bridge, None),
            f"{SWITCH}, without its own work": wiring_ms(2, None, datapath),
        }
    return samples, datapath


def measure_apart(rounds: int, seconds: int) -> program.Report:
    """Measure in a new network namespace, then delete everything that was created."""
    privsep.network_pctxt.set_client_mode(False)
    state, lock = daemons.make_state_folder()
    home = namespaces.open_namespace()
    namespaces.enter_new_namespace()
    try:
        return report(*measure_all(state, rounds, seconds))
    finally:
        namespaces.enter_namespace(home)
        daemons.clear(state)
        lock.close()


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = program.parser(__doc__, "network")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=1, help="seconds of each measurement")
    arguments = parser.parse_args()
    return program.run(arguments.json, lambda: measure_apart(arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    sys.exit(main())
