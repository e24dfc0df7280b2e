# SPDX-License-Identifier: Apache-2.0
"""A process that boots and resizes containers and reports the duration of each operation.

Runs in nova-compute's namespace, as its user and with its configuration file. Reads one request per
line from standard input, answers each with a line, and deletes what it created when the input ends.
Its first line only means that it is ready::

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
    # This comes first, because Nova's threading mode must precede any import of eventlet.
    monkey_patch.patch(backend="threading")
    from nova import config, objects, utils
    from oslo_log import log as logging
    from oslo_privsep import priv_context

    objects.register_all()
    from benchmarks.booter import Booter
    from novadocker.conf import CONF

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="nova-compute's configuration file")
    parser.add_argument(
        "--image", required=True, type=json.loads, help="Glance's record of the image, JSON"
    )
    parser.add_argument(
        "--bridge", default="br-int", help="Open vSwitch bridge for the servers' ports"
    )
    arguments = parser.parse_args()
    # Output of libraries must not appear between the answers.
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
