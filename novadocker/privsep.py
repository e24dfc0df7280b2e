# SPDX-License-Identifier: Apache-2.0
"""The privileged contexts; nothing runs as root outside functions entered through one.

Kept free of Nova: the helper process imports it, and stays small.
"""

from oslo_privsep import capabilities, priv_context

# no privileged call takes a second; a helper that hangs must not hold up a thread of nova-compute
_TIMEOUT_SECONDS = 60

network_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_network",
    pypath=f"{__name__}.network_pctxt",
    # links, addresses and routes | to enter and to mount a network namespace
    capabilities=[capabilities.CAP_NET_ADMIN, capabilities.CAP_SYS_ADMIN],
    timeout=_TIMEOUT_SECONDS,
)
