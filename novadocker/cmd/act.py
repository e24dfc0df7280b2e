# SPDX-License-Identifier: Apache-2.0
"""``novadocker-act``: does to servers what the operator's policy says for alarms."""

import argparse
import ipaddress
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

import openstack

from novadocker.actions import hook, policy
from novadocker.exporter import serving

ADDRESS = "127.0.0.1"
PORT = 9420


def main(arguments: Sequence[str] | None = None) -> int:
    """Take Alertmanager's webhooks on the loopback address until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="novadocker-act", description=__doc__)
    parser.add_argument("--policy", type=Path, required=True, help="the policy file")
    parser.add_argument(
        "--password-file",
        type=Path,
        required=True,
        help="file with a line user:password, closed to others, that Alertmanager sends",
    )
    parser.add_argument("--port", type=int, default=PORT, help="TCP port (default %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        password = serving.read_password(chosen.password_file)
        read = policy.read(chosen.policy)
    except (OSError, ValueError, policy.PolicyError) as error:
        parser.error(str(error))
    # before the server's thread begins, which inherits it
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    # of OS_CLOUD, or the other variables of openstacksdk
    with openstack.connect() as cloud:
        application = serving.with_password(hook.make_application(hook.Hook(cloud, read)), password)
        server, thread = serving.start(ipaddress.ip_address(ADDRESS), chosen.port, application)
        signal.sigwait(stops)
        server.shutdown()
        server.server_close()
        thread.join()
    return 0
