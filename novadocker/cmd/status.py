# SPDX-License-Identifier: Apache-2.0
"""``novadocker-status upgrade check``: checks whether this host is ready to run servers.

Run it as the user of nova-compute, with the same ``--config-file`` arguments.
"""

import socket
import sys
from collections.abc import Sequence

import os_vif
from nova import conf
from oslo_config import cfg
from oslo_upgradecheck import upgradecheck

import novadocker.conf  # noqa: F401 - registers [docker]
from novadocker.cmd import checks, probes
from novadocker.virt.docker.guest import lxcfs
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.model import EngineInfo

CONF = conf.CONF


class Checks(upgradecheck.UpgradeCommands):
    """The checks of the command; each reads facts by ``probes`` and judges them by ``checks``."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Create the checks.

        :param arguments: of the command
        """
        super().__init__()
        self._arguments = arguments

    _info: EngineInfo | None = None
    _call: checks.PrivilegedCall | None = None
    _chassis: checks.Chassis | None = None
    _kernel: checks.Kernel

    def _check_import(self) -> upgradecheck.Result:
        return checks.check_import(probes.import_driver())

    def _check_configuration(self) -> upgradecheck.Result:
        set_in = CONF.get_location("compute_driver")
        origin = set_in.detail if set_in and set_in.location.is_user_controlled else ""
        return checks.check_configuration(
            CONF.compute_driver,
            probes.configuration_paths(self._arguments),
            origin,
            probes.configuration_paths(()),
        )

    def _check_process(self) -> upgradecheck.Result:
        read = probes.configuration_paths(self._arguments)
        return checks.check_process(probes.find_processes(), sys.executable, read)

    def _check_node(self) -> upgradecheck.Result:
        return checks.check_node(probes.read_node(CONF))

    def _check_engine(self) -> upgradecheck.Result:
        url = CONF.docker.api_url
        self._info, error = probes.read_engine(CONF.docker)
        bypass = probes.engine_socket()
        return checks.check_engine(url, probes.user_name(), self._info, error, bypass)

    def _check_runtime(self) -> upgradecheck.Result:
        name = CONF.docker.runtime
        path = self._info.runtimes.get(name, "") if self._info else ""
        return checks.check_runtime(self._info, name, probes.ask_shim(path))

    def _check_live_restore(self) -> upgradecheck.Result:
        return checks.check_live_restore(self._info)

    def _check_storage(self) -> upgradecheck.Result:
        sized = self._info is not None and filesystem.can_size_disks(self._info)
        return checks.check_storage(self._info, sized)

    def _check_cgroups(self) -> upgradecheck.Result:
        return checks.check_cgroups(self._info)

    def _check_seccomp(self) -> upgradecheck.Result:
        return checks.check_seccomp(self._info)

    def _check_switch(self) -> upgradecheck.Result:
        # os-vif's plug-in registers the option ovsdb_connection.
        os_vif.initialize()
        connection = CONF.os_vif_ovs.ovsdb_connection
        return checks.check_switch(connection, probes.ask_switch(connection))

    def _check_ovn(self) -> upgradecheck.Result:
        self._chassis = probes.read_chassis(CONF.os_vif_ovs.ovsdb_connection)
        return checks.check_ovn(self._chassis, CONF.host, socket.gethostname())

    def _check_agent(self) -> upgradecheck.Result:
        return checks.check_agent(*probes.read_agents(), CONF.host, socket.gethostname())

    def _check_lxcfs(self) -> upgradecheck.Result:
        folder = CONF.docker.lxcfs_folder
        view = lxcfs.read_view(folder) if folder else lxcfs.View()
        return checks.check_lxcfs(folder, view, probes.find_samples())

    def _check_privileges(self) -> upgradecheck.Result:
        self._call = probes.call_privileged(CONF)
        return checks.check_privileges(self._call, probes.find_samples())

    def _check_bandwidth(self) -> upgradecheck.Result:
        datapaths = probes.read_datapaths(CONF.os_vif_ovs.ovsdb_connection)
        bridge = CONF.neutron.ovs_bridge
        return checks.check_bandwidth(datapaths, bridge, self._call, self._chassis)

    def _check_budgets(self) -> upgradecheck.Result:
        return checks.check_budgets(probes.read_budgets(), probes.find_samples())

    def _check_kernel(self) -> upgradecheck.Result:
        self._kernel = probes.read_kernel()
        return checks.check_kernel(self._kernel, probes.missing_programs(CONF.mkisofs_cmd))

    def _check_user_namespaces(self) -> upgradecheck.Result:
        trial = None
        if self._info is not None and self._call is not None and not self._call.error:
            trial = probes.try_user_namespaces(self._info)
        return checks.check_user_namespaces(
            CONF.docker.user_namespaces, CONF.docker.user_namespace_ids, trial
        )

    def _check_suspend(self) -> upgradecheck.Result:
        reason = None
        if self._call is not None and not self._call.error:
            reason = probes.why_no_criu(CONF.docker.criu)
        return checks.check_suspend(CONF.docker.suspend, reason)

    def _check_confinement(self) -> upgradecheck.Result:
        return checks.check_confinement(self._info, self._kernel)

    def _check_resize(self) -> upgradecheck.Result:
        return checks.check_resize(CONF.allow_resize_to_same_host)

    # The order matters, because later checks use the answers of the engine and of the privileged
    # process, which are read once.
    _upgrade_checks = (
        ("Driver", _check_import),
        ("Configuration", _check_configuration),
        ("nova-compute", _check_process),
        ("Compute node", _check_node),
        ("Docker Engine", _check_engine),
        ("Runtime shim", _check_runtime),
        ("Live restore", _check_live_restore),
        ("Storage driver", _check_storage),
        ("Control groups", _check_cgroups),
        ("Seccomp", _check_seccomp),
        ("Open vSwitch", _check_switch),
        ("OVN", _check_ovn),
        ("Neutron agent", _check_agent),
        ("Own /proc", _check_lxcfs),
        ("Privileges", _check_privileges),
        ("Bandwidth limits", _check_bandwidth),
        ("Kernel", _check_kernel),
        ("Kernel budgets", _check_budgets),
        ("SELinux and AppArmor", _check_confinement),
        ("User namespaces", _check_user_namespaces),
        ("Suspend to a disk", _check_suspend),
        ("Resize on the same host", _check_resize),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0 for success, 1 for a warning, 2 for a failure, 255 for an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        upgradecheck.register_cli_options(CONF, Checks(given))
        CONF(
            given,
            project="nova",
            default_config_files=cfg.find_config_files(project="nova", prog="nova-compute"),
            default_config_dirs=cfg.find_config_dirs(project="nova", prog="nova-compute"),
        )
        # upgradecheck.main passes no directories, and reads the option --json from this variable.
        upgradecheck.CONF = CONF
        return int(upgradecheck.run(CONF))
    except cfg.Error as error:
        print(f"Failed to read the configuration: {error}", file=sys.stderr)
        return 255
