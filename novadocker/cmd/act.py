# SPDX-License-Identifier: Apache-2.0
"""``novadocker-act``: executes the actions of the operator's policy on servers with alarms."""

import logging
from collections.abc import Sequence
from pathlib import Path

from novadocker.actions import cloud, hook, policy
from novadocker.cmd import loopback
from novadocker.exporter import serving

PORT = 9420


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve Alertmanager's webhook on the loopback address until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = loopback.make_parser("novadocker-act", __doc__, "Alertmanager", PORT)
    parser.add_argument("--policy", type=Path, required=True, help="policy file")
    chosen = parser.parse_args(arguments)
    password = loopback.read_password(parser, chosen)
    try:
        read = policy.read(chosen.policy)
    except (OSError, policy.PolicyError) as error:
        parser.error(str(error))
    serving.hold_stops()
    with cloud.connect() as connection:
        application = hook.make_application(hook.Hook(connection, read))
        application = serving.with_password(application, password)
        return serving.run(loopback.ADDRESS, chosen.port, application)
