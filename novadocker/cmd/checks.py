# SPDX-License-Identifier: Apache-2.0
"""The judgements of ``novadocker-status upgrade check``. Pure: from facts to a line of advice."""

import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oslo_upgradecheck.upgradecheck import Code, Result

from novadocker import _loader, exception, extra_specs
from novadocker.virt.docker.guest.lxcfs import View
from novadocker.virt.docker.host import user_namespaces
from novadocker.virt.docker.model import OVERLAYFS, EngineInfo
from novadocker.virt.docker.network import ovs

COMPUTE_DRIVER = "docker.DockerDriver"
PROXY_URL = "unix:///run/novadocker-engine-proxy.sock"
"""The socket of the unit of ``novadocker-engine-proxy``."""

# The controllers that an instance's limits need, as the engine's warnings spell them.
_NEEDED_CONTROLLERS = ("memory limit", "swap limit", "cpu cfs", "cpu shares", "cpuset", "pids")

# The least values, which are those of etc/sysctl.d/novadocker.conf.
BUDGETS = {
    "fs.inotify.max_user_instances": 1048576,
    "fs.inotify.max_user_watches": 4194304,
    "fs.pipe-user-pages-soft": 1048576,
    "kernel.keys.maxkeys": 20000,
    "kernel.keys.maxbytes": 2000000,
    "fs.aio-max-nr": 1048576,
}
# 0 means no limit (kernel: Documentation/admin-guide/sysctl/fs.rst).
_UNLIMITED_AT_0 = "fs.pipe-user-pages-soft"

# Errors of Python without a usable directory for temporary files, and of the kernel.
_NO_SPACE = re.compile(r"No usable temporary directory|No space left on device")

# Without this option of lxcfs, instances see their cpuset, not the CPUs that their quota allows.
_LXCFS_OPTION = "--enable-cfs"


@dataclass(frozen=True)
class DriverImport:
    """The result of importing the driver by the name that Nova uses.

    :ivar origin: file of the module that was found; None if no module was found
    :ivar error: error of the import; empty if it succeeded
    :ivar hooked: whether the loader's finder is installed
    :ivar folder: directory from which novadocker was imported
    :ivar site_folder: a directory whose ``.pth`` files this interpreter reads
    """

    origin: str | None
    error: str
    hooked: bool
    folder: str
    site_folder: str


@dataclass(frozen=True)
class NovaProcess:
    """A process of nova-compute on this host.

    :ivar python: interpreter as its command line names it: a path, or a name that the search path
        of its start had; empty if the process was started without one
    :ivar paths: the configuration files and directories that it reads, of which a later one wins
    """

    number: int
    python: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Node:
    """What is known of the compute node of this host.

    :ivar host: nova-compute's ``[DEFAULT] host``, which names the node
    :ivar hostname: the kernel's host name
    :ivar uuid: UUID in the file ``compute_id``; empty if there is no file
    :ivar error: why the file or Placement can't be read; empty if both can
    :ivar name_of_uuid: name in Placement of the node with this UUID; empty if it has none
    :ivar uuid_of_name: UUID in Placement of the node with the name ``host``; empty if it has none
    """

    host: str
    hostname: str
    uuid: str = ""
    error: str = ""
    name_of_uuid: str = ""
    uuid_of_name: str = ""


@dataclass(frozen=True)
class Kernel:
    """What this kernel and its host offer to servers.

    :ivar release: such as ``6.1.0-38-amd64``
    :ivar systemd: whether containers with systemd can run: the hierarchy ``name=systemd`` of cgroup
        v1, or the mount option ``nsdelegate`` of cgroup v2
    :ivar loop_devices: whether the kernel creates loop devices
    :ivar selinux: whether SELinux is enforcing
    """

    release: str
    systemd: bool
    loop_devices: bool
    selinux: bool


@dataclass(frozen=True)
class Chassis:
    """What Open vSwitch's database tells OVN of this host.

    :ivar remote: address of OVN's southbound database; empty if the host does not use OVN
    :ivar hostname: name by which Neutron knows the host; empty for the kernel's host name
    """

    remote: str
    hostname: str


@dataclass(frozen=True)
class Agent:
    """An agent of Neutron that binds ports.

    :ivar kind: such as ``Open vSwitch agent``
    :ivar host: ``[DEFAULT] host`` of the agent, or the name of OVN's chassis
    :ivar alive: whether Neutron has heard of it lately
    """

    kind: str
    host: str
    alive: bool


@dataclass(frozen=True)
class PrivilegedCall:
    """The result of the start of the privileged processes and of a call to one of them.

    :ivar root: whether the caller was already root
    :ivar command: command that starts the privileged process of ``context``, up to its context
    :ivar error: error of the start or of the call; empty if they succeeded
    :ivar context: context whose process does not start; empty if it is not known
    :ivar contexts: all contexts that each nova-compute needs
    :ivar missing_means: what the kernel lacks to limit bandwidth (``ovs_support.missing_means``)
    :ivar volumes_error: error of the start of the process that connects volumes; empty if it
        succeeded, or was not tried because of ``error``
    :ivar volumes_context: context of this process
    """

    user: str
    root: bool
    command: Sequence[str]
    error: str
    missing_means: Sequence[str] = ()
    context: str = ""
    contexts: Sequence[str] = ()
    volumes_error: str = ""
    volumes_context: str = ""


def check_import(found: DriverImport) -> Result:
    """Check that Nova finds the driver by its short name."""
    if found.origin == _loader.__file__:
        return _success(f"{COMPUTE_DRIVER} loads from {found.folder}")
    if found.origin is not None:
        return _failure(f"another package has the same module name: remove {found.origin}")
    if found.hooked:
        return _failure(f"the driver can't be imported, install the missing package: {found.error}")
    if not Path(found.folder, "novadocker-loader.pth").exists():
        return _failure(
            f"novadocker-loader.pth is missing in {found.folder}: install novadocker with pip for "
            "the Python that runs nova-compute"
        )
    return _failure(
        f"Python does not read .pth files in {found.folder} (nor in any directory of PYTHONPATH): "
        "install novadocker with pip for the Python that runs nova-compute, or write the line "
        f'import site; site.addsitedir("{found.folder}") to {found.site_folder}/novadocker.pth'
    )


def check_configuration(
    compute_driver: str | None, files: Sequence[str], origin: str, defaults: Sequence[str]
) -> Result:
    """Check that Nova's option ``compute_driver`` names the driver.

    :param files: the files that this command read, of which a later one wins
    :param origin: the one of ``files`` that sets the option; empty if none does
    :param defaults: the files that nova-compute reads if it has no arguments
    """
    if compute_driver != COMPUTE_DRIVER:
        found = f"compute_driver is {compute_driver}" + (f" in {origin}" if origin else "")
        where = ", ".join(files) or "no configuration file was found; pass it with --config-file"
        return _failure(f"{found}: set it to {COMPUTE_DRIVER} in [DEFAULT] ({where})")
    if unread := [file for file in defaults if file not in files]:
        return _warning(
            f"compute_driver is {COMPUTE_DRIVER} in {origin}, but this command did not read "
            f"{', '.join(unread)}, which nova-compute reads by default: run it with the "
            "--config-file arguments of nova-compute, or without any if nova-compute has none"
        )
    return _success(f"compute_driver is {COMPUTE_DRIVER} in {origin}; read were {', '.join(files)}")


def check_process(processes: Sequence[NovaProcess], python: str, read: tuple[str, ...]) -> Result:
    """Check that this command judges what the running nova-compute has.

    :param python: path of this interpreter
    :param read: the configuration files and directories that this command read, in its order
    """
    if not processes:
        return _success("nova-compute does not run on this host")
    # A host of tests may have several processes, each with files of its own.
    alike = [process for process in processes if process.paths == read]
    if not alike:
        found = "; ".join(
            f"process {process.number} reads {', '.join(process.paths) or 'none'}"
            for process in processes
        )
        own = ", ".join(read) or "none"
        return _warning(
            f"nova-compute has other configuration files than this command ({own}): "
            f"{found}; run this command with the same --config-file and --config-dir arguments"
        )
    number = alike[0].number
    # An environment has its interpreter by several names.
    own_folder = Path(python).parent
    others = [process.python for process in alike if os.path.isabs(process.python)]
    if len(others) == len(alike) and all(Path(other).parent != own_folder for other in others):
        return _warning(
            f"nova-compute (process {number}) runs by {others[0]}, this command by {python}: "
            "run the novadocker-status of the environment of nova-compute"
        )
    return _success(f"nova-compute (process {number}) has this command's configuration files")


def check_node(node: Node) -> Result:
    """Check that nova-compute starts as the node that it was before."""
    name = f"the node is {node.host}" + (
        "" if node.hostname == node.host else f" (the kernel's host name is {node.hostname})"
    )
    if node.name_of_uuid not in ("", node.host):
        return _failure(
            f"{name}, but Placement knows its UUID {node.uuid} as {node.name_of_uuid}, so "
            "nova-compute refuses to start (Possible rename detected): set [DEFAULT] host to "
            f"{node.name_of_uuid}; or, if no server is on the host, delete its compute service by "
            "openstack compute service delete, and the file compute_id in Nova's state_path"
        )
    if node.uuid_of_name not in ("", node.uuid):
        own = f"this host has UUID {node.uuid}" if node.uuid else "this host has no compute_id"
        return _failure(
            f"{name}, which has UUID {node.uuid_of_name} in Placement, but {own}: write the UUID "
            "to the file compute_id in Nova's state_path, or give this host another [DEFAULT] host"
        )
    if node.error:
        return _warning(f"{name}, but {node.error}")
    if not node.uuid:
        return _success(f"{name}; nova-compute creates its UUID at the first start")
    if not node.name_of_uuid:
        return _success(f"{name} with UUID {node.uuid}, which Placement does not know yet")
    return _success(f"{name} with UUID {node.uuid}, in Placement, too")


def check_kernel(kernel: Kernel, missing: Sequence[str]) -> Result:
    """Check what servers need of the host beside the engine.

    :param missing: the programs that the driver calls and that are not in the search path
    """
    if missing:
        return _warning(f"programs that the driver calls are missing: {', '.join(missing)}")
    if not kernel.systemd:
        return _warning(
            "images with systemd do not boot: the host needs the hierarchy name=systemd of cgroup "
            "v1, or cgroup v2 with the mount option nsdelegate; a host that runs systemd has it"
        )
    if not kernel.loop_devices:
        return _warning(
            "/dev/loop-control is missing, so config drives are no block devices: load the "
            "kernel module loop"
        )
    return _success(f"kernel {kernel.release} has what servers need")


def check_confinement(info: EngineInfo | None, kernel: Kernel) -> Result:
    """Check that no mandatory access control is in the way of the driver."""
    if info is None:
        return _unknown()
    if info.selinux:
        return _failure(
            "the engine labels containers for SELinux, so servers cannot read files that the "
            "driver mounts, such as the config drive: remove selinux-enabled from daemon.json and "
            "restart the engine"
        )
    if kernel.selinux:
        return _warning(
            "SELinux is enforcing, which the project does not test: nova-compute must be allowed "
            "to connect to the engine's socket and to start privsep-helper by sudo (ausearch -m "
            "avc shows what was denied)"
        )
    if info.apparmor:
        return _success("AppArmor confines servers by the engine's profile docker-default")
    return _success("no mandatory access control is in force")


def check_engine(
    url: str, user: str, info: EngineInfo | None, error: str, bypass: str = ""
) -> Result:
    """Check that the engine answers and is new enough.

    :param error: the reason if ``info`` is None
    :param bypass: the engine's own socket if the user can connect to it; otherwise empty
    """
    if info is not None and url == PROXY_URL and bypass:
        return _warning(
            f"user {user} can connect to {bypass}, so novadocker-engine-proxy restricts nothing: "
            "remove the user from the group that owns the socket (gpasswd --delete USER docker) "
            "and restart nova-compute"
        )
    if info is not None and info.rootless:
        return _failure(
            f"the engine at {url} is rootless, so it cannot give servers the network namespaces of "
            "the driver: install the engine as a service of the system"
        )
    if info is not None and info.data_root.startswith("/var/snap/"):
        return _failure(
            f"the engine at {url} is a snap, which cannot start a runtime of the host: install the "
            "engine of the distribution or of Docker instead"
        )
    if info is not None:
        return _success(f"engine {info.version} with API {info.api_version} answers at {url}")
    if "permission denied" in error.lower() and url == PROXY_URL:
        return _failure(
            f"user {user} has no permission for {url}: write a group of the user to SocketGroup in "
            "novadocker-engine-proxy.socket and restart the socket"
        )
    if "permission denied" in error.lower():
        return _failure(
            f"user {user} has no permission for {url}: add the user to the group that owns the "
            "socket (usermod --append --groups docker) and restart nova-compute"
        )
    return _failure(f"{error}; start the engine, or correct [docker] api_url")


def check_runtime(info: EngineInfo | None, name: str, error: str) -> Result:
    """Check that the runtime shim is registered and finds its Python program.

    :param error: why the registered path does not serve; empty if it does
    """
    if info is None:
        return _unknown()
    if name not in info.runtimes:
        return _failure(
            f"the engine has no runtime {name!r}: register the path of novadocker-runtime under "
            "'runtimes' in daemon.json and reload the engine"
        )
    path = info.runtimes[name]
    if not path.startswith("/"):
        return _failure(
            f"runtime {name!r} has the path {path!r}: write an absolute path to daemon.json"
        )
    if error:
        return _failure(
            f"runtime {name!r} is registered as {path}, which is {error}: correct the path in "
            "daemon.json and reload the engine, or install novadocker there"
        )
    return _success(f"runtime {name!r} is {path}")


def check_live_restore(info: EngineInfo | None) -> Result:
    """Check that instances keep running while the engine is down."""
    if info is None:
        return _unknown()
    if info.live_restore:
        return _success("live-restore is on")
    return _warning(
        "live-restore is off, so all servers stop when the engine stops: set "
        '"live-restore": true in daemon.json and reload the engine'
    )


def check_storage(info: EngineInfo | None, sized: bool) -> Result:
    """Check the storage driver.

    :param sized: whether it can limit the disk of an instance
    """
    if info is None:
        return _unknown()
    driver, filesystem = info.storage_driver, info.backing_filesystem
    if info.containerd_store and driver != OVERLAYFS:
        return _failure(
            f"the engine keeps images in containerd's image store with the snapshotter {driver}, "
            'so nova-compute does not start: set "storage-driver": "overlay2" and "features": '
            '{"containerd-snapshotter": false} in daemon.json and restart the engine'
        )
    if info.containerd_store:
        return _warning(
            f"the engine keeps images in containerd's image store ({driver}): servers run, but "
            "rescues, migrations and novadocker-recover do not work, and nothing limits "
            'the disk of a server: set "storage-driver": "overlay2" and "features": '
            '{"containerd-snapshotter": false} in daemon.json before the first server'
        )
    if driver == "vfs":
        return _warning(
            "storage driver vfs copies the whole image for each server: set "
            '"storage-driver": "overlay2" in daemon.json'
        )
    if sized:
        return _success(f"storage driver {driver} gives each server the disk of its flavor")
    return _warning(
        f"storage driver {driver} on {filesystem or 'this file system'} can't limit the disk of a "
        "server: put the data root on a file system of its own, or use overlay2 on XFS that is "
        "mounted with pquota, or btrfs"
    )


def check_cgroups(info: EngineInfo | None) -> Result:
    """Check that the kernel has every controller that an instance's limits need."""
    if info is None:
        return _unknown()
    missing = [
        warning.removeprefix("WARNING: ")
        for warning in info.warnings
        if any(f"No {controller}" in warning for controller in _NEEDED_CONTROLLERS)
    ]
    if missing:
        return _warning(
            f"cgroup v{info.cgroup_version}, but {'; '.join(missing)}: these limits have no "
            "effect; enable the controllers on the kernel's command line"
        )
    return _success(f"cgroup v{info.cgroup_version} with all controllers that limits need")


def check_seccomp(info: EngineInfo | None) -> Result:
    """Check that the engine can start instances with the driver's seccomp profile."""
    if info is None:
        return _unknown()
    if info.seccomp:
        return _success("the engine supports seccomp profiles")
    return _failure(
        "the engine supports no seccomp profiles, so it starts only servers with "
        "docker:nesting=host: use a kernel with CONFIG_SECCOMP_FILTER and an engine that is built "
        "with seccomp"
    )


def check_switch(connection: str, error: str) -> Result:
    """Check that Open vSwitch's database answers.

    :param error: the error; empty if the database answers
    """
    if not error:
        return _success(f"Open vSwitch's database answers at {connection}")
    return _failure(
        f"{error}: start Open vSwitch, make its database listen there (ovs-vsctl "
        "set-manager ptcp:6640:127.0.0.1), or correct [os_vif_ovs] ovsdb_connection"
    )


def check_ovn(chassis: Chassis | None, host: str, hostname: str) -> Result:
    """Check that Neutron finds the chassis of this host, on a host that uses OVN.

    :param chassis: None if the switch does not answer
    :param host: nova-compute's ``[DEFAULT] host``
    :param hostname: the kernel's host name, which OVN takes by default
    """
    if chassis is None:
        return _warning("unknown, because Open vSwitch does not answer")
    if not chassis.remote:
        return _success("this host does not use OVN")
    known = chassis.hostname or hostname
    if known == host:
        return _success(f"the chassis has nova-compute's host name {host}")
    return _failure(
        f"OVN knows this host as {known}, nova-compute as {host}, so Neutron binds no port here: "
        f"run ovs-vsctl set open_vswitch . external_ids:hostname={host}, or set [DEFAULT] host"
    )


def check_agent(agents: Sequence[Agent], error: str, host: str, hostname: str) -> Result:
    """Check that Neutron's agent on this host has nova-compute's host name.

    :param agents: the agents of all hosts
    :param error: why Neutron can't be asked; empty if it answered
    :param host: nova-compute's ``[DEFAULT] host``, with which Neutron looks for an agent
    :param hostname: the kernel's host name
    """
    if error:
        return _warning(f"unknown, because {error}")
    own = [agent for agent in agents if agent.host == host]
    if alive := [agent for agent in own if agent.alive]:
        return _success(f"Neutron's {alive[0].kind} has nova-compute's host name {host}")
    if own:
        return _warning(f"Neutron's {own[0].kind} on {host} is not alive: start it")
    if others := [agent for agent in agents if _may_be_same(agent.host, host, hostname)]:
        return _failure(
            f"Neutron's {others[0].kind} calls this host {others[0].host}, nova-compute calls it "
            f"{host}, so Neutron binds no port here: give both the same [DEFAULT] host"
        )
    return _warning(
        f"Neutron has no agent on {host}, so it binds only ports of the mechanism driver novadocker"
    )


def _may_be_same(name: str, host: str, hostname: str) -> bool:
    """Return True if an agent of this name may be the one of the host.

    In one of the services, the name may be the kernel's, or the fully qualified one.
    """
    return any(
        own in (name, name.partition(".")[0]) or own.partition(".")[0] == name
        for own in (host, hostname)
    )


def check_bandwidth(
    datapaths: Mapping[str, str] | None,
    bridge: str,
    call: PrivilegedCall | None,
    chassis: Chassis | None = None,
) -> Result:
    """Check that Neutron's bandwidth limits have an effect.

    :param datapaths: datapath type by bridge; None if the switch does not answer
    :param call: result of the privileged call; None if it was not made
    """
    if chassis is not None and chassis.remote:
        return _success("OVN limits bandwidth by meters of the switch")
    if datapaths is None or call is None or call.error:
        return _warning("unknown, because Open vSwitch or the privileged process does not answer")
    if reason := ovs.ineffective_limits(datapaths, bridge, call.missing_means):
        return _warning(f"Neutron's bandwidth limits have no effect here: {reason}")
    return _success("Neutron's bandwidth limits have an effect in both directions")


def check_budgets(values: Mapping[str, int | None], samples: str) -> Result:
    """Check the kernel's budgets that a user id of all instances and of the host shares.

    :param values: the sysctls of ``BUDGETS``; None for those that the kernel lacks
    :param samples: directory of the sample files
    """
    low = {
        name: value
        for name, value in values.items()
        if value is not None
        and value < BUDGETS[name]
        and not (name == _UNLIMITED_AT_0 and value == 0)
    }
    if not low:
        return _success("no server can use up inotify, pipes, keys or asynchronous I/O")
    found = ", ".join(f"{name} is {value}" for name, value in low.items())
    return _warning(
        f"{found}: one server can use up what users with the same id need in all servers and on "
        f"the host; install {samples}/sysctl.d/novadocker.conf"
    )


def check_resize(allowed: bool) -> Result:
    """Check that an instance may be resized on its own host."""
    if allowed:
        return _success("allow_resize_to_same_host is on; nova-api's configuration needs it, too")
    return _warning(
        "allow_resize_to_same_host is off on this host: a resize in place needs it set to true in "
        "[DEFAULT], also in the configuration that nova-api reads"
    )


def check_privileges(call: PrivilegedCall, samples: str) -> Result:
    """Check that the user of nova-compute can start each privileged process.

    :param samples: directory of the sample files
    """
    if call.error:
        if _NO_SPACE.search(call.error):
            return _failure(
                f"privileged calls fail for user {call.user} ({call.error}): the sockets of the "
                "privileged processes are in the directory for temporary files, which has no space"
            )
        of = f" in context {call.context}" if call.context else ""
        return _failure(
            f"privileged calls{of} fail for user {call.user} ({call.error}): "
            f"{_permission(call, samples)}"
        )
    if call.volumes_error:
        return _warning(
            f"privileged calls work for user {call.user}, but volumes cannot be attached "
            f"({call.volumes_error}): {_permission_for_volumes(call, samples)}"
        )
    if call.root:
        return _warning(
            "privileged calls work for root, but nova-compute may run as another user: run this "
            "command as the user of nova-compute"
        )
    return _success(
        f"privileged calls work for user {call.user} in all {len(call.contexts)} contexts, and for "
        "volumes"
    )


def check_user_namespaces(mode: str, ids: str, trial: user_namespaces.Trial | None) -> Result:
    """Check whether each server has a user namespace of its own.

    :param mode: the option ``user_namespaces``
    :param ids: the option ``user_namespace_ids``
    :param trial: a trial of this host; None without an engine
    """
    try:
        user_namespaces.parse_ids(ids)
    except exception.InvalidConfiguration as error:
        return _failure(f"nova-compute does not start: {error.format_message()}")
    if trial is None:
        return _unknown()
    if trial.failure and mode != user_namespaces.REQUIRED:
        effect = "servers get no user namespaces of their own until it succeeds"
        return _warning(f"the trial of this host failed, and {effect}: {trial.failure}")
    reason = trial.refusal or trial.failure
    if not reason:
        own = "have" if mode != "host" else "may have, by docker:userns=own,"
        return _success(f"servers {own} user namespaces of their own")
    if mode == "host":
        return _success(f"servers have the host's ids, and can have no others: {reason}")
    if mode == "own":
        return _warning(f"servers have the host's ids: {reason}")
    return _failure(
        f"nova-compute does not start, because [docker] user_namespaces = {mode}: {reason}"
    )


def check_suspend(mode: str, reason: str | None) -> Result:
    """Check whether suspended servers can go to the disk.

    :param mode: the option ``suspend``
    :param reason: why CRIU can't work, empty if it can; None without the privileged process
    """
    if reason is None:
        return _unknown()
    if not reason:
        return _success("CRIU can write the memory of suspended servers to the disk")
    effect = f"the memory of suspended servers stays in RAM: {reason}"
    return _success(effect) if mode == extra_specs.RAM else _warning(effect)


def check_lxcfs(folder: str, view: View, samples: str) -> Result:
    """Check that instances see their own values in /proc.

    :param samples: directory of the sample files
    """
    if not folder:
        return _success("lxcfs is turned off: servers see the host's values in /proc")
    if view.error:
        return _failure(f"lxcfs at {folder} can't be read: {view.error}; restart lxcfs")
    if view.device is None:
        return _warning(
            f"lxcfs is not mounted at {folder}, so servers see the host's values in /proc: install "
            "it, or correct [docker] lxcfs_folder"
        )
    if view.arguments and _LXCFS_OPTION not in view.arguments:
        return _warning(
            f"lxcfs runs without {_LXCFS_OPTION}: install "
            f"{samples}/systemd/lxcfs.service.d/novadocker.conf"
        )
    return _success(f"servers see their own values in /proc by lxcfs at {folder}")


def _permission(call: PrivilegedCall, samples: str) -> str:
    """Return the advice how to allow the commands of the privileged processes."""
    if any(Path(word).name == "nova-rootwrap" for word in call.command):
        return (
            "allow nova-rootwrap for the user in sudoers and add the directory of privsep-helper "
            f"to exec_dirs in rootwrap.conf; or see {samples}/sudoers.d/novadocker for a setup "
            "without nova-rootwrap"
        )
    # The first word of the command is sudo.
    program, *arguments = call.command[1:]
    if "command not found" in call.error:
        return (
            f"add its directory to sudo's path in /etc/sudoers.d/novadocker: Defaults:{call.user} "
            f'secure_path="{Path(program).parent}:/usr/sbin:/usr/bin:/sbin:/bin"'
        )
    rule = sudo_rule(call.user, program, arguments, call.contexts)
    if rule is None:
        return f"adapt {samples}/sudoers.d/novadocker and install it in /etc/sudoers.d"
    return f"allow it in /etc/sudoers.d/novadocker (sudo 1.9.10 or newer): {rule}"


def _permission_for_volumes(call: PrivilegedCall, samples: str) -> str:
    """Return the advice how to allow the command of the process that connects volumes."""
    if any(Path(word).name == "nova-rootwrap" for word in call.command):
        return _permission(call, samples)
    program, *arguments = call.command[1:]
    file = f"install {samples}/sudoers.d/novadocker-volumes in /etc/sudoers.d"
    rule = sudo_rule(call.user, program, arguments, [call.volumes_context])
    return (
        f"if the host is to have volumes, {f'{file}: {rule}' if rule else f'adapt and {file}'}; "
        "this makes the user root"
    )


def sudo_rule(
    user: str, program: str, arguments: Sequence[str], contexts: Sequence[str]
) -> str | None:
    """Return a line of ``sudoers(5)`` that allows exactly the privileged processes.

    A wildcard would match spaces, and so any further argument: another context, which is a function
    of any Python module. So the line has a regular expression.

    :param arguments: of the program, before its context
    :returns: None if an argument has a character that sudo does not take literally
    """
    words = [user, program, *arguments]
    if not all(re.fullmatch(r"[A-Za-z0-9_./+-]+", word) for word in words):
        return None
    before = "".join(f"{_literal(argument)} " for argument in arguments)
    names = "|".join(map(_literal, contexts))
    return (
        f"{user} ALL = (root) NOPASSWD: {program} ^{before}--privsep_context ({names}) "
        r"--privsep_sock_path /tmp/[A-Za-z0-9_]+/privsep\.sock$"
    )


def _literal(word: str) -> str:
    """Return an extended regular expression (POSIX) that matches only the word."""
    return re.sub(r"([.+])", r"\\\1", word)


def _success(details: str) -> Result:
    return Result(Code.SUCCESS, details)


def _warning(details: str) -> Result:
    return Result(Code.WARNING, details)


def _failure(details: str) -> Result:
    return Result(Code.FAILURE, details)


def _unknown() -> Result:
    return _warning("unknown, because the engine does not answer: see above")
