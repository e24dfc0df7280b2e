# SPDX-License-Identifier: Apache-2.0
"""A process that reports a nonexistent Neutron agent until its standard input ends.

Neutron binds ports on a host only while an agent reports from it. The host of Nova's fake driver
has no agent, and its servers need no wiring.
"""

import argparse
import json
import select
import sys

_SECONDS = 20


def main() -> None:
    """Report once, print a line, then report periodically."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config-file", required=True, help="configuration file of an agent on this machine"
    )
    parser.add_argument("--host", required=True, help="host from which it reports")
    parser.add_argument(
        "--configuration", required=True, type=json.loads, help="the agent's configuration, JSON"
    )
    arguments = parser.parse_args()

    from neutron.agent import rpc
    from neutron.common import config
    from neutron.conf.agent import common as agent_config
    from neutron_lib import constants, context
    from neutron_lib.agent import topics

    config.register_common_config_options()
    agent_config.register_agent_state_opts_helper(agent_config.cfg.CONF)
    config.init(["--config-file", arguments.config_file])
    reports = rpc.PluginReportStateAPI(topics.REPORTS)
    state = {
        "agent_type": constants.AGENT_TYPE_OVS,
        "binary": "neutron-openvswitch-agent",
        "configurations": arguments.configuration,
        "host": arguments.host,
        "start_flag": True,
        "topic": constants.L2_AGENT_TOPIC,
    }
    while True:
        reports.report_state(context.get_admin_context_without_session(), state, use_call=True)
        if state.pop("start_flag", False):
            print("reported", flush=True)
        if select.select([sys.stdin], [], [], _SECONDS)[0]:
            return


if __name__ == "__main__":
    main()
