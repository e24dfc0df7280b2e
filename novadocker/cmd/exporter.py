# SPDX-License-Identifier: Apache-2.0
"""``novadocker-exporter``: serves the metrics of a host's servers to Prometheus."""

import argparse
import ipaddress
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from novadocker import engine_paths
from novadocker.exporter import (
    files,
    incidents,
    kernel_log,
    ovn,
    probes,
    rings,
    serving,
    switch_rates,
    thinpool,
)
from novadocker.exporter.collector import (
    Asked,
    HostCollector,
    LeakCollector,
    Places,
    WatchCollector,
)
from novadocker.exporter.leaks import Search
from novadocker.exporter.probes import Probes, Programs
from novadocker.exporter.rings import Rings
from novadocker.exporter.thinpool import Space
from novadocker.exporter.watch import Watch
from novadocker.linux.threads import Polled
from novadocker.state_files.port_rates import PortRate

LOG = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
PORT = 9419

_POOL_SECONDS = 30.0
_RATES_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve /metrics until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = _parser()
    chosen = parser.parse_args(arguments)
    # If the data root can't be read, the metrics would look like those of a host without servers.
    # access(2) would ignore the capabilities of the process.
    try:
        os.scandir(engine_paths.containers(chosen.data_root)).close()
    except OSError:
        parser.error(
            f"{chosen.data_root} is not a data root of the engine or can't be read (is "
            "CAP_DAC_READ_SEARCH missing?)"
        )
    password, tls = _security(parser, chosen)
    places = Places(
        data_root=chosen.data_root, engine=chosen.engine_socket, state_path=chosen.state_path
    )
    registry = CollectorRegistry()
    programs = Programs(
        containerd=chosen.containerd_socket,
        switch=chosen.ovs_folder,
        switch_control=chosen.ovs_control_socket,
        ovn=chosen.ovn_folder,
        lxcfs=chosen.lxcfs_folder,
        state_path=chosen.state_path,
    )
    asks = {name: ask for name, ask in probes.asks(programs).items() if name in chosen.processes}
    watched = Probes(asks)
    pool: Polled[dict[str, Space]] = Polled(
        "the thin pool",
        partial(thinpool.read_pool, places.data_root, places.engine),
        nothing={},
        seconds=_POOL_SECONDS,
    )
    rates: Polled[dict[str, PortRate]] = Polled(
        "the rates of the switch",
        partial(
            _read_rates,
            programs.switch,
            ovn.Meters(probes.database(programs.switch), programs.ovn),
        ),
        nothing={},
        seconds=_RATES_SECONDS,
    )
    asked = Asked(watched.up, pool.last, rates.last)
    registry.register(HostCollector(places, asked, files.most_kept()))
    watch = Watch(
        places.root,
        engine_paths.containers(places.data_root),
        Rings(chosen.kernel_log_folder),
        _open_log(),
        partial(incidents.report, places.state_path),
    )
    registry.register(WatchCollector(watch))
    search = Search(places.root / "run", places.data_root, chosen.ovs_folder)
    registry.register(LeakCollector(search))
    serving.hold_stops()
    watch.start()
    threads = (watched, pool, rates, search)
    for thread in threads:
        thread.start()
    application = serving.make_application(registry, password)
    code = serving.run(chosen.address, chosen.port, application, tls)
    for thread in threads:
        thread.stop()
    watch.close()
    return code


def _read_rates(switch: Path, meters: ovn.Meters) -> dict[str, PortRate]:
    """Return the limits of ports by host end; a port's are set by Neutron's OVS agent or by OVN."""
    return switch_rates.read_rates(switch) | meters.read_rates()


def _security(
    parser: argparse.ArgumentParser, chosen: argparse.Namespace
) -> tuple[bytes | None, serving.Tls | None]:
    if bool(chosen.certificate) != bool(chosen.key):
        parser.error("--certificate and --key must be given together")
    tls = serving.Tls(chosen.certificate, chosen.key) if chosen.certificate else None
    if not chosen.address.is_loopback and not (tls and chosen.password_file):
        parser.error(
            f"--address {chosen.address} is not a loopback address, so --certificate, --key and "
            "--password-file are required"
        )
    try:
        password = serving.read_password(chosen.password_file) if chosen.password_file else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return password, tls


def _open_log() -> kernel_log.KernelLog | None:
    try:
        return kernel_log.open_log()
    except OSError as error:
        LOG.warning(
            "Cannot read %s, so kernel messages are not exported (is CAP_SYSLOG missing?): %s",
            kernel_log.PATH,
            error,
        )
        return None


def _parser() -> argparse.ArgumentParser:
    defaults = Places()
    parser = argparse.ArgumentParser(prog="novadocker-exporter", description=__doc__)
    parser.add_argument(
        "--address",
        type=ipaddress.ip_address,
        default=ipaddress.ip_address(ADDRESS),
        help="address to listen on (default %(default)s); any but a loopback address requires "
        "--certificate, --key and --password-file",
    )
    parser.add_argument("--port", type=int, default=PORT, help="TCP port (default %(default)s)")
    parser.add_argument(
        "--certificate", type=Path, help="PEM file of the certificate for HTTPS, with its chain"
    )
    parser.add_argument("--key", type=Path, help="PEM file of the certificate's private key")
    parser.add_argument(
        "--password-file",
        type=Path,
        help="file with a line user:password that scrapes must send; its permissions must not give "
        "access to other users",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        default=defaults.data_root,
        help="data root of the engine (default %(default)s)",
    )
    parser.add_argument(
        "--engine-socket",
        default=defaults.engine,
        help="socket of the engine (default %(default)s)",
    )
    parser.add_argument(
        "--processes",
        nargs="*",
        choices=probes.NAMES,
        default=probes.NAMES,
        metavar="PROCESS",
        help=f"programs to probe, of {', '.join(probes.NAMES)} (default: all)",
    )
    asked = Programs()
    parser.add_argument(
        "--containerd-socket",
        default=asked.containerd,
        help="socket of containerd (default %(default)s)",
    )
    parser.add_argument(
        "--ovs-folder",
        type=Path,
        default=asked.switch,
        help="directory of the sockets of Open vSwitch (default %(default)s)",
    )
    parser.add_argument(
        "--ovs-control-socket",
        type=Path,
        help="control socket of ovs-vswitchd (default: derived from the pid file in --ovs-folder)",
    )
    parser.add_argument(
        "--ovn-folder",
        type=Path,
        default=asked.ovn,
        help="directory of the sockets and the pid file of ovn-controller (default %(default)s)",
    )
    parser.add_argument(
        "--lxcfs-folder",
        type=Path,
        default=asked.lxcfs,
        help="mount point of lxcfs (default %(default)s)",
    )
    parser.add_argument(
        "--state-path",
        type=Path,
        default=asked.state_path,
        help="nova-compute's [DEFAULT] state_path (default %(default)s)",
    )
    parser.add_argument(
        "--kernel-log-folder",
        type=Path,
        default=rings.FOLDER,
        help="directory for the lines of the kernel's log about each server (default %(default)s)",
    )
    return parser
