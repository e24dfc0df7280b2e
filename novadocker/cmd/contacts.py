# SPDX-License-Identifier: Apache-2.0
"""``novadocker-contacts``: serves the contacts of projects, so that alarms reach the owner."""

import logging
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from novadocker.actions import cloud
from novadocker.actions.contacts import Contacts
from novadocker.cmd import loopback
from novadocker.exporter import serving

PORT = 9421


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve /metrics on the loopback address until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = loopback.make_parser("novadocker-contacts", __doc__, "Prometheus", PORT)
    chosen = parser.parse_args(arguments)
    password = loopback.read_password(parser, chosen)
    registry = CollectorRegistry()
    serving.hold_stops()
    with cloud.connect() as connection:
        found = Contacts(connection)
        registry.register(found)
        found.start()
        application = serving.make_application(registry, password)
        code = serving.run(loopback.ADDRESS, chosen.port, application)
        found.stop()
    return code
