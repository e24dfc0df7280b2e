# SPDX-License-Identifier: Apache-2.0
"""Neutron's DHCP or L3 agent with one worker thread: ``one_worker.py dhcp OPTION...``.

Neutron 29's ``ExclusiveResourceProcessor`` has no lock, so two workers on one network or router
lose updates (about 1 in 30 concurrent ones). A port whose update is lost never becomes active, and
its server fails after ``vif_plugging_timeout``. One worker loses no update.
"""

import sys

from neutron.agent.dhcp import agent as dhcp_agent
from neutron.agent.l3 import agent as l3_agent
from neutron.cmd.agents import dhcp, l3

if __name__ == "__main__":
    dhcp_agent.DHCP_PROCESS_THREADS = 1
    l3_agent.ROUTER_PROCESS_THREADS = 1
    name = sys.argv.pop(1)
    sys.argv[0] = f"neutron-{name}-agent"
    sys.exit({"dhcp": dhcp.main, "l3": l3.main}[name]())
