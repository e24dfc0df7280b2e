# SPDX-License-Identifier: Apache-2.0
"""A privileged call that changes nothing, for ``novadocker-status``.

It runs in a process of its own: nothing bounds the time that sudo may take to start the helper,
so the parent does. Kept free of Nova, since the helper imports it, too.
"""

import logging
import shlex
import sys
import threading

from oslo_config import cfg
from oslo_privsep import capabilities, daemon, priv_context

from novadocker import privsep
from novadocker.privsep.network import ovs_support

# by when sudo's last words have gone from its pipe to the log
_LAST_WORDS_SECONDS = 1


@privsep.network_pctxt.entrypoint
def read_capabilities() -> list[int]:
    """Return the effective capabilities of the privileged process."""
    effective, _, _ = capabilities.get_caps()
    return [int(capability) for capability in effective]


def main() -> int:
    """Make the call; return 0 if the helper has what the driver needs.

    The first argument is how to become root, empty if there is nothing to say; the others are
    configuration files and folders as for nova-compute. What went wrong is on stderr, and on stdout
    are the means of limiting bandwidth that the kernel lacks.
    """
    logging.basicConfig(format="%(message)s")
    cfg.CONF(sys.argv[2:], project="nova", prog="nova-compute")
    priv_context.init(root_helper=shlex.split(sys.argv[1]))
    try:
        effective = read_capabilities()
    except daemon.FailedToDropPrivileges:
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(_LAST_WORDS_SECONDS)
        return 1
    missing = sorted(set(privsep.network_pctxt.conf.capabilities) - set(effective))
    if missing:
        names = ", ".join(capabilities.CAPS_BYVALUE[number] for number in missing)
        print(f"the helper lacks {names}", file=sys.stderr)
        return 1
    print(*ovs_support.missing_means())
    return 0
