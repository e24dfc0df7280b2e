# SPDX-License-Identifier: Apache-2.0
"""What ``novadocker-status upgrade check`` concludes; pure: facts in, a line of advice out."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oslo_upgradecheck.upgradecheck import Code, Result

from novadocker import _loader
from novadocker.virt.docker.guest.lxcfs import View
from novadocker.virt.docker.model import EngineInfo
from novadocker.virt.docker.network import ovs

COMPUTE_DRIVER = "docker.DockerDriver"

# what the limits of a server need, in the words of the engine's warnings
_NEEDED_CONTROLLERS = ("memory limit", "swap limit", "cpu cfs", "cpu shares", "cpuset", "pids")

# the option of lxcfs without which servers see CPUs by number, not by the time they have of them
_LXCFS_OPTION = "--enable-cfs"


@dataclass(frozen=True)
class DriverImport:
    """What came of importing the driver by Nova's name.

    :ivar origin: the file of the module that was found, None if none was
    :ivar error: why the import failed, empty if it did not
    :ivar hooked: whether the loader's finder is in place
    :ivar folder: the folder that novadocker was imported from
    :ivar site_folder: a folder whose ``.pth`` files this interpreter does read
    """

    origin: str | None
    error: str
    hooked: bool
    folder: str
    site_folder: str


@dataclass(frozen=True)
class PrivilegedCall:
    """What came of a call through the privileged helper.

    :ivar root: whether the caller was root already
    :ivar command: what starts the helper; the path of a socket follows
    :ivar error: what went wrong, empty if nothing did
    :ivar missing_means: of limiting bandwidth, as ``policing.missing_means`` has them
    """

    user: str
    root: bool
    command: Sequence[str]
    error: str
    missing_means: Sequence[str] = ()


def check_import(found: DriverImport) -> Result:
    """Check that Nova finds the driver under its short name."""
    if found.origin == _loader.__file__:
        return _success(f"{COMPUTE_DRIVER} loads from {found.folder}")
    if found.origin is not None:
        return _failure(f"another package is in the way: remove {found.origin}")
    if found.hooked:
        return _failure(f"the driver does not import, install what is missing: {found.error}")
    if not Path(found.folder, "novadocker-loader.pth").exists():
        return _failure(
            f"{found.folder} lacks novadocker-loader.pth: install novadocker with pip for the "
            "Python that runs nova-compute"
        )
    return _failure(
        f".pth files in {found.folder} are not read (as in every folder of PYTHONPATH): install "
        "novadocker with pip for the Python that runs nova-compute, or write the line "
        f'import site; site.addsitedir("{found.folder}") to {found.site_folder}/novadocker.pth'
    )


def check_configuration(compute_driver: str | None, files: Sequence[str]) -> Result:
    """Check that Nova is told to use the driver."""
    if compute_driver == COMPUTE_DRIVER:
        return _success(f"compute_driver is {COMPUTE_DRIVER}")
    where = ", ".join(files) or "no configuration file was found; name it with --config-file"
    return _failure(
        f"compute_driver is {compute_driver}: set it to {COMPUTE_DRIVER} in [DEFAULT] ({where})"
    )


def check_engine(url: str, user: str, info: EngineInfo | None, error: str) -> Result:
    """Check that the engine answers and is new enough; ``error`` says why there is no info."""
    if info is not None:
        return _success(f"engine {info.version} with API {info.api_version} answers at {url}")
    if "permission denied" in error.lower():
        return _failure(
            f"user {user} may not use {url}: add it to the group that owns the socket "
            "(usermod --append --groups docker) and restart nova-compute"
        )
    return _failure(f"{error}; start the engine, or correct [docker] api_url")


def check_runtime(info: EngineInfo | None, name: str, executable: bool) -> Result:
    """Check that the runtime shim is registered; ``executable`` tells of the file at its path."""
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
            f"runtime {name!r} has the path {path!r}: write an absolute one to daemon.json"
        )
    if not executable:
        return _failure(
            f"runtime {name!r} is registered as {path}, which is no executable file: correct the "
            "path in daemon.json and reload the engine, or install novadocker there"
        )
    return _success(f"runtime {name!r} is {path}")


def check_live_restore(info: EngineInfo | None) -> Result:
    """Check that servers outlive the engine."""
    if info is None:
        return _unknown()
    if info.live_restore:
        return _success("live-restore is on")
    return _warning(
        "live-restore is off, so all servers stop whenever the engine does: set "
        '"live-restore": true in daemon.json and reload the engine'
    )


def check_storage(info: EngineInfo | None, sized: bool) -> Result:
    """Check the storage driver; ``sized`` tells whether it can limit the disk of a server."""
    if info is None:
        return _unknown()
    driver, filesystem = info.storage_driver, info.backing_filesystem
    if driver == "vfs":
        return _warning(
            "storage driver vfs copies the whole image for each server: set "
            '"storage-driver": "overlay2" in daemon.json'
        )
    if sized:
        return _success(f"storage driver {driver} gives each server the disk of its flavor")
    return _warning(
        f"storage driver {driver} on {filesystem or 'this file system'} can't limit the disk of a "
        "server: keep the data root apart from the host's own disk, or use overlay2 on XFS that "
        "is mounted with pquota, or btrfs"
    )


def check_cgroups(info: EngineInfo | None) -> Result:
    """Check that the kernel has every controller that a server's limits need."""
    if info is None:
        return _unknown()
    missing = [
        warning.removeprefix("WARNING: ")
        for warning in info.warnings
        if any(f"No {controller}" in warning for controller in _NEEDED_CONTROLLERS)
    ]
    if missing:
        return _warning(
            f"cgroup v{info.cgroup_version}, but {'; '.join(missing)}: such limits are not kept; "
            "enable the controllers on the kernel's command line"
        )
    return _success(f"cgroup v{info.cgroup_version} with all controllers that limits need")


def check_switch(connection: str, error: str) -> Result:
    """Check that Open vSwitch's database can be reached; ``error`` is empty if it can."""
    if not error:
        return _success(f"Open vSwitch's database answers at {connection}")
    return _failure(
        f"Open vSwitch's database can't be reached at {connection} ({error}): start Open vSwitch, "
        "let it listen there (ovs-vsctl set-manager ptcp:6640:127.0.0.1), or correct "
        "[os_vif_ovs] ovsdb_connection"
    )


def check_bandwidth(
    datapaths: Mapping[str, str] | None, bridge: str, call: PrivilegedCall | None
) -> Result:
    """Check that Neutron's bandwidth limits have an effect; None stands for what is not known."""
    if datapaths is None or call is None or call.error:
        return _warning("not known, since the switch or the privileged helper does not answer")
    if reason := ovs.ineffective_limits(datapaths, bridge, call.missing_means):
        return _warning(f"Neutron's bandwidth limits have no effect here: {reason}")
    return _success("Neutron's bandwidth limits have an effect in both directions")


def check_resize(allowed: bool) -> Result:
    """Check that a server may be resized on the host it is on."""
    if allowed:
        return _success("allow_resize_to_same_host is on; nova-api's configuration needs it, too")
    return _warning(
        "allow_resize_to_same_host is off here: a resize in place needs it set to true in "
        "[DEFAULT], above all in the configuration that nova-api reads"
    )


def check_privileges(call: PrivilegedCall) -> Result:
    """Check that the user of nova-compute can start the privileged helper."""
    if call.error:
        return _failure(f"user {call.user} gets no privileges ({call.error}): {_permission(call)}")
    if call.root:
        return _warning(
            "privileged calls work for root, which proves little: run this command as the user of "
            "nova-compute"
        )
    return _success(f"privileged calls work for user {call.user}")


def check_lxcfs(folder: str, view: View) -> Result:
    """Check that servers see their own values in /proc."""
    if not folder:
        return _success("lxcfs is turned off: servers see the host's values in /proc")
    if view.error:
        return _failure(f"lxcfs at {folder} is broken: {view.error}; restart it")
    if view.device is None:
        return _warning(
            f"lxcfs is not mounted at {folder}, so servers see the host's values in /proc: install "
            "it, or correct [docker] lxcfs_folder"
        )
    if view.arguments and _LXCFS_OPTION not in view.arguments:
        return _warning(
            f"lxcfs runs without {_LXCFS_OPTION}: install "
            "etc/systemd/lxcfs.service.d/novadocker.conf"
        )
    return _success(f"servers see their own values in /proc by lxcfs at {folder}")


def _permission(call: PrivilegedCall) -> str:
    """Say what allows the helper's command."""
    if any(Path(word).name == "nova-rootwrap" for word in call.command):
        return (
            "let sudo allow it nova-rootwrap, and name privsep-helper's folder in exec_dirs of "
            "rootwrap.conf; or see etc/sudoers.d/novadocker for the way without nova-rootwrap"
        )
    # the first word is sudo itself
    program, *arguments = call.command[1:]
    if "command not found" in call.error:
        return (
            f"let sudo find it by a line in /etc/sudoers.d/novadocker: Defaults:{call.user} "
            f'secure_path="{Path(program).parent}:/usr/sbin:/usr/bin:/sbin:/bin"'
        )
    helper = shlex.join([program, *arguments])
    return (
        f"allow it in /etc/sudoers.d/novadocker: {call.user} ALL = (root) NOPASSWD: {helper} "
        "/tmp/*/privsep.sock"
    )


def _success(details: str) -> Result:
    return Result(Code.SUCCESS, details)


def _warning(details: str) -> Result:
    return Result(Code.WARNING, details)


def _failure(details: str) -> Result:
    return Result(Code.FAILURE, details)


def _unknown() -> Result:
    return _warning("not known, since the engine does not answer: see above")
