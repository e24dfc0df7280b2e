# SPDX-License-Identifier: Apache-2.0
"""``novadocker-engine-proxy``: passes the driver's requests, and no others, to the engine.

systemd opens the socket on which the program listens (``sd_listen_fds(3)``).
"""

import argparse
import logging
import os
import re
import socket
from collections.abc import Sequence

from novadocker import extra_specs
from novadocker.engine_proxy import serving
from novadocker.engine_proxy.policy import Policy

ENGINE = "/run/docker.sock"

# sd_listen_fds(3): SD_LISTEN_FDS_START
_LISTENER = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Pass requests until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        parser.error("start it by systemd with one socket, as novadocker-engine-proxy.socket does")
    policy = Policy(
        runtime=chosen.runtime,
        lxcfs_folder=chosen.lxcfs_folder,
        devices=frozenset(chosen.device),
        registry=chosen.transfer_registry,
    )
    with socket.socket(fileno=_LISTENER) as listener:
        serving.serve(listener, chosen.engine_socket, policy)
    return 0


def _device(text: str) -> str:
    if not re.fullmatch(extra_specs.DEVICES.pattern, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path of a device")
    return text


def _parser() -> argparse.ArgumentParser:
    defaults = Policy()
    parser = argparse.ArgumentParser(prog="novadocker-engine-proxy", description=__doc__)
    parser.add_argument(
        "--engine-socket", default=ENGINE, help="socket of the engine (default %(default)s)"
    )
    parser.add_argument(
        "--runtime",
        default=defaults.runtime,
        help="nova-compute's [docker] runtime (default %(default)s)",
    )
    parser.add_argument(
        "--lxcfs-folder",
        default=defaults.lxcfs_folder,
        help="nova-compute's [docker] lxcfs_folder (default %(default)s)",
    )
    parser.add_argument(
        "--transfer-registry",
        default=defaults.registry,
        help="nova-compute's [docker] transfer_registry (default: none)",
    )
    parser.add_argument(
        "--device",
        action="append",
        type=_device,
        default=[],
        help="path of a device that flavors may give to servers by docker:devices; may be repeated",
    )
    return parser
