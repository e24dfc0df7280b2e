# SPDX-License-Identifier: Apache-2.0
"""``novadocker-receive``: receives an instance's data on the destination host of a move.

nova-compute of the source host starts it through ssh, as nova-compute's user. Standard input and
output carry the messages of ``novadocker.virt.docker.migration.protocol``.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from nova import config, objects, utils
from nova.conductor import rpcapi
from nova.objects import base
from oslo_privsep import priv_context

from novadocker.conf import CONF
from novadocker.virt.docker.engine import aftermath
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import announced
from novadocker.virt.docker.migration import expected, receiver


def main(arguments: Sequence[str] | None = None) -> int:
    """Receive one instance; return exit status 0 if its data is kept."""
    options = sys.argv[1:] if arguments is None else arguments
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    # What libraries print goes to standard error, because it would get between the answers.
    os.dup2(2, 1)
    # oslo.config derives the default files and directories from the name of the program.
    sys.argv = ["nova-compute", *options]
    config.parse_args(sys.argv, configure_db=False)
    # As in nova-compute: its objects come from Nova's conductor.
    objects.register_all()
    base.NovaObject.indirection_api = rpcapi.ConductorAPI()
    priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
    engine = Engine.from_options(CONF.docker)
    source = os.fdopen(0, "rb", buffering=0)
    load = partial(announced.load, engine)
    try:
        kept = receiver.serve(engine, load, expected.most_bytes, source, answers)
    finally:
        aftermath.wait()
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
