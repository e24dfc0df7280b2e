# SPDX-License-Identifier: Apache-2.0
"""A process that boots and resizes containers, and says how long each took.

Runs where and as whom nova-compute runs, with its configuration file. Takes one request a line on
standard input, answers each with a line, and removes what it made when the input ends. The first
line that it prints only says that it is ready::

    {"verb": "raw"}                    -> {"seconds": 0.27, "parts": {"create": 0.06, ...}}
    {"verb": "spawn", "grace": 0.0}    -> the same, for the driver's spawn
    {"verb": "resize", "flavor": {"vcpus": 2}} -> the same, for the last server
    {"verb": "tasks"}    -> {"tasks": {"power states": {"calls": 1, "cpu": 0.02}, ...}}
    {"verb": "restart"}                -> {"seconds": 4.1, "parts": {}}, for all servers
    {"verb": "idle", "seconds": 30}    -> the same; the seconds are CPU time
    {"verb": "remove"}                 -> {"removed": 1}, the oldest server
    {"verb": "clear"}                  -> {"removed": 2}
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from typing import Any

from nova import monkey_patch


def main() -> None:
    """Serve requests until the input ends."""
    # first: Nova forbids eventlet before anything can import it
    monkey_patch.patch(backend="threading")
    from nova import config, objects, utils
    from oslo_log import log as logging
    from oslo_privsep import priv_context

    objects.register_all()
    from benchmarks.booter import Booter
    from novadocker.conf import CONF

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="nova-compute's")
    parser.add_argument("--image", required=True, type=json.loads, help="Glance's record, JSON")
    parser.add_argument("--bridge", default="br-int", help="for the servers' ports")
    arguments = parser.parse_args()
    # whatever libraries print must not get between the answers
    answers, sys.stdout = sys.stdout, sys.stderr
    config.parse_args(
        ["nova-compute", "--config-file", arguments.config_file],
        configure_db=False,
        init_rpc=False,
    )
    logging.setup(CONF, "nova")
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    booter = Booter(CONF.host, arguments.image, arguments.bridge)
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "raw": booter.raw,
        "spawn": booter.spawn,
        "resize": booter.resize,
        "tasks": booter.tasks,
        "restart": booter.restart,
        "idle": booter.idle,
        "remove": booter.remove,
        "clear": booter.clear,
    }
    try:
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(verbs[request.pop("verb")](**request)), file=answers, flush=True)
    finally:
        booter.clear()


if __name__ == "__main__":
    main()
