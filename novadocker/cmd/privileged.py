# SPDX-License-Identifier: Apache-2.0
"""The start of each privileged process, and a call that changes nothing, for ``novadocker-status``.

It runs in a process of its own, because the time that sudo takes to start a privileged process is
unbounded, and the parent can kill this process. Imports nothing of Nova, because a privileged
process imports this module, too.
"""

import logging
import shlex
import sys
import threading

from os_brick import privileged as os_brick
from oslo_config import cfg
from oslo_privsep import capabilities, daemon, priv_context
from vif_plug_ovs import privsep as os_vif

from novadocker import privsep
from novadocker.privsep.network import ovs_support

CONTEXTS = (
    privsep.network_pctxt,
    privsep.interior_pctxt,
    privsep.storage_pctxt,
    privsep.view_pctxt,
    privsep.transfer_pctxt,
    privsep.volume_pctxt,
    os_vif.vif_plug,
)
"""The contexts that each nova-compute needs, each of which has a privileged process of its own."""
VOLUMES = os_brick.default
"""The context that only a host with volumes needs, because its process runs any command."""
NO_VOLUMES = 3
"""Exit status if only the process of ``VOLUMES`` does not start."""

# Time for the thread of oslo.privsep that copies sudo's messages from a pipe to the log.
_LAST_WORDS_SECONDS = 1


@privsep.network_pctxt.entrypoint
def read_capabilities() -> list[int]:
    """Return the effective capabilities of the privileged process."""
    effective, _, _ = capabilities.get_caps()
    return [int(capability) for capability in effective]


def main() -> int:
    """Start each privileged process. Return 0 if all start and have the necessary capabilities.

    Return ``NO_VOLUMES`` if a host without volumes has what it needs, else 1.

    The first argument is the command that becomes root, or empty; the others are the arguments of
    nova-compute for configuration files and directories. Errors are printed on stderr. On stdout is
    the context whose process does not start, or the kernel's missing means of limiting bandwidth.
    """
    logging.basicConfig(format="%(message)s")
    cfg.CONF(sys.argv[2:], project="nova", prog="nova-compute")
    priv_context.init(root_helper=shlex.split(sys.argv[1]))
    for context in CONTEXTS:
        if not _starts(context):
            print(context.pypath)
            return 1
    effective = read_capabilities()
    missing = sorted(set(privsep.network_pctxt.conf.capabilities) - set(effective))
    if missing:
        names = ", ".join(capabilities.CAPS_BYVALUE[number] for number in missing)
        print(f"the privileged process lacks {names}", file=sys.stderr)
        return 1
    print(*ovs_support.missing_means())
    return 0 if _starts(VOLUMES) else NO_VOLUMES


def _starts(context: priv_context.PrivContext) -> bool:
    """Start a privileged process. Return False if it does not start, after sudo's messages."""
    try:
        context.start()
    except daemon.FailedToDropPrivileges:
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join(_LAST_WORDS_SECONDS)
        return False
    return True
