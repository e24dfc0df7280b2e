# SPDX-License-Identifier: Apache-2.0
"""``novadocker-contacts``: the contacts of projects, for alarms that tell the owner."""

import argparse
import ipaddress
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

import openstack
from prometheus_client import CollectorRegistry

from novadocker.actions.contacts import Contacts
from novadocker.exporter import serving

ADDRESS = "127.0.0.1"
PORT = 9421


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve /metrics on the loopback address until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="novadocker-contacts", description=__doc__)
    parser.add_argument(
        "--password-file",
        type=Path,
        required=True,
        help="file with a line user:password, closed to others, that Prometheus sends",
    )
    parser.add_argument("--port", type=int, default=PORT, help="TCP port (default %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        password = serving.read_password(chosen.password_file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    # before the threads begin, which inherit it
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    registry = CollectorRegistry()
    # of OS_CLOUD, or the other variables of openstacksdk
    with openstack.connect() as cloud:
        found = Contacts(cloud)
        registry.register(found)
        found.start()
        application = serving.make_application(registry, password)
        server, thread = serving.start(ipaddress.ip_address(ADDRESS), chosen.port, application)
        signal.sigwait(stops)
        found.stop()
        server.shutdown()
        server.server_close()
        thread.join()
    return 0
