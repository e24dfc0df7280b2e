# SPDX-License-Identifier: Apache-2.0
"""``novadocker-exporter``: the metrics of a host's servers, for Prometheus."""

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server

from novadocker.exporter.collector import HostCollector, Places

ADDRESS = "127.0.0.1"
PORT = 9419


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve /metrics on the loopback address until SIGTERM or SIGINT."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    # without it a host would look as if it had no server
    if not os.access(chosen.data_root / "containers", os.R_OK | os.X_OK):
        parser.error(f"{chosen.data_root} is no data root, or can't be read: CAP_DAC_READ_SEARCH?")
    places = Places(data_root=chosen.data_root, engine=chosen.engine_socket)
    registry = CollectorRegistry()
    registry.register(HostCollector(places))
    # before the server's thread begins, which inherits it
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    server, thread = start_http_server(chosen.port, ADDRESS, registry)
    signal.sigwait(stops)
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = Places()
    parser = argparse.ArgumentParser(prog="novadocker-exporter", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT, help="TCP port (default %(default)s)")
    parser.add_argument(
        "--data-root",
        type=Path,
        default=defaults.data_root,
        help="the engine's data root (default %(default)s)",
    )
    parser.add_argument(
        "--engine-socket",
        default=defaults.engine,
        help="the engine's socket, to ping it (default %(default)s)",
    )
    return parser
