# SPDX-License-Identifier: Apache-2.0
"""Reading the facts that ``checks`` judges from this host, each within bounded time."""

import argparse
import importlib
import os
import pwd
import shlex
import shutil
import signal
import site
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import psutil
from keystoneauth1 import exceptions as keystone_exceptions
from keystoneauth1.adapter import Adapter
from nova import exception as nova_exception
from nova import objects, utils
from nova.virt import node as virt_node
from oslo_config import cfg
from oslo_privsep import priv_context

import novadocker
from novadocker import _loader, exception, privsep
from novadocker.cmd import privileged
from novadocker.cmd.checks import (
    BUDGETS,
    Agent,
    Chassis,
    DriverImport,
    Kernel,
    Node,
    NovaProcess,
    PrivilegedCall,
)
from novadocker.linux import namespaces, ovsdb
from novadocker.privsep.guest import checkpoint, user_namespaces
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import Options
from novadocker.virt.docker.host import user_namespaces as host_user_namespaces
from novadocker.virt.docker.model import EngineInfo
from novadocker.virt.docker.network import ovs

_ENGINE_SECONDS = 10
_ENGINE_SOCKET = "/run/docker.sock"
_API_SECONDS = 10
# Other agents, such as the one of DHCP, bind no port of a server.
_AGENTS = ("Open vSwitch agent", "OVN Controller agent", "OVN Controller Gateway agent")
_PRIVILEGED_SECONDS = 30
_SHIM_SECONDS = 10
_SAMPLE = "sudoers.d/novadocker"
_DEBIAN_SAMPLES = "/usr/share/doc/nova-compute-docker/examples"
_SHIM_REFUSAL = "the container id is not an id of the engine"
# The driver starts these programs to read images; sudo starts the privileged processes.
_PROGRAMS = ("gzip", "zstd", "xz", "sudo", "setpriv", "unshare")
# The engine's runtimes have this search path (systemd.exec(5)).
_SYSTEMD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# oslo.privsep puts this prefix before each line that the privileged process writes.
_HELPER_PREFIX = "privsep log: "
_PRIVILEGED_CALL = "import sys; from novadocker.cmd import privileged; sys.exit(privileged.main())"


def import_driver() -> DriverImport:
    """Import the driver as nova-compute does, and return the result."""
    # nova-compute registers the objects before it loads the driver.
    objects.register_all()
    origin, error = None, ""
    try:
        spec = importlib.import_module(_loader.ALIAS).__spec__
        origin = spec.origin if spec else None
    except ImportError as failure:
        error = str(failure)
    return DriverImport(
        origin=origin,
        error=error,
        hooked=any(isinstance(finder, _loader.AliasFinder) for finder in sys.meta_path),
        folder=str(Path(novadocker.__file__).parents[1]),
        site_folder=site.getsitepackages()[0],
    )


def find_processes(root: Path = Path("/proc")) -> list[NovaProcess]:
    """Return the processes of nova-compute on this host, without those of servers.

    A tenant's process may have any name and arguments.
    """
    found = []
    own = namespaces.count_pid_namespaces(root / "self")
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        process_of_nova = _nova_process(process.pid, words)
        depth = namespaces.count_pid_namespaces(root / str(process.pid))
        if process_of_nova and depth == own:
            found.append(process_of_nova)
    return found


def _nova_process(number: int, words: list[str]) -> NovaProcess | None:
    """Return the process with a command line; None if it is not nova-compute's.

    The program is a script, so its interpreter precedes it: ``python3 -u nova-compute ...``.
    """
    names = [Path(word).name for word in words[:3]]
    if "nova-compute" not in names:
        return None
    at = names.index("nova-compute")
    if at > 0 and not names[0].startswith("python"):
        return None
    python = words[0] if at > 0 else ""
    try:
        return NovaProcess(number, python, configuration_paths(words[at + 1 :]))
    except argparse.ArgumentError:
        # nova-compute refuses such arguments, too, and ends.
        return None


def configuration_paths(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the configuration files and directories that nova-compute reads, the last one wins.

    oslo.config reads the default ones before it parses the arguments (``_parse_config_files``), so
    a file among the arguments wins over the default directories.

    :param arguments: the arguments of nova-compute, or those of this command
    :raises ArgumentError: the last argument is an option without its value
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    # Both options append to one list, in the order of the arguments.
    parser.add_argument("--config-file", action="append", dest="paths", default=[])
    parser.add_argument("--config-dir", action="append", dest="paths")
    given = parser.parse_known_args(list(arguments))[0].paths
    found: list[str] = []
    for option, find in (
        ("--config-file", cfg.find_config_files),
        ("--config-dir", cfg.find_config_dirs),
    ):
        if not any(word == option or word.startswith(f"{option}=") for word in arguments):
            found += find(project="nova", prog="nova-compute")
    return (*found, *given)


def try_user_namespaces(info: EngineInfo) -> host_user_namespaces.Trial:
    """Try whether servers of this host can have their own user namespaces.

    Call it after ``call_privileged`` has succeeded.
    """
    return host_user_namespaces.try_host(info, user_namespaces.why_impossible)


def why_no_criu(program: str) -> str:
    """Return why CRIU can't work on this host; empty if it can.

    Call it after ``call_privileged`` has succeeded.
    """
    try:
        reason: str = checkpoint.why_impossible(program)
    except (OSError, *privsep.UNANSWERED) as error:
        return str(error)
    return reason


def read_node(configuration: cfg.ConfigOpts) -> Node:
    """Return what this host and Placement know of the compute node."""
    host = configuration.host
    node = Node(host=host, hostname=socket.gethostname())
    try:
        node = replace(node, uuid=virt_node.read_local_node_uuid() or "")
    except nova_exception.InvalidNodeConfiguration as error:
        return replace(node, error=error.format_message())
    except OSError as error:
        return replace(node, error=f"{error.filename} can't be read: {error.strerror}")
    try:
        placement = _api("placement")
        by_name = _providers(placement, "name", host)
        by_uuid = _providers(placement, "uuid", node.uuid) if node.uuid else []
        return replace(
            node,
            name_of_uuid=by_uuid[0]["name"] if by_uuid else "",
            uuid_of_name=by_name[0]["uuid"] if by_name else "",
        )
    except (keystone_exceptions.ClientException, nova_exception.NovaException) as error:
        return replace(node, error=f"Placement can't be asked: {error}")
    except (ValueError, LookupError, TypeError) as error:
        # A proxy between may answer with a page of its own.
        return replace(node, error=f"Placement sent a malformed answer: {error!r}")


def read_agents() -> tuple[list[Agent], str]:
    """Return Neutron's agents that bind ports, and why Neutron can't be asked, or an empty string.

    Neutron is asked with nova-compute's own credentials.
    """
    try:
        answer = _api("network").get("/v2.0/agents", raise_exc=True).json()
        listed = [
            Agent(agent["agent_type"], agent["host"], agent["alive"] is True)
            for agent in answer["agents"]
        ]
    except (keystone_exceptions.ClientException, nova_exception.NovaException) as error:
        return [], f"Neutron can't be asked: {error}"
    except (ValueError, LookupError, TypeError) as error:
        return [], f"Neutron sent a malformed answer: {error!r}"
    return [agent for agent in listed if agent.kind in _AGENTS], ""


def _api(service: str) -> Adapter:
    """Return the client of a service's API, with the credentials of Nova's configuration.

    :raises ClientException: the credentials are incomplete; also NovaException
    """
    found = utils.get_ksa_adapter(service)
    # The service and Keystone may not answer; keystoneauth waits without a limit by default.
    found.session.timeout = _API_SECONDS
    return found


def _providers(placement: Adapter, key: str, value: str) -> list[dict[str, str]]:
    """Return Placement's resource providers with a name or UUID.

    :raises ClientException: Placement does not answer, or refuses the request
    :raises ValueError: the answer is malformed; also LookupError and TypeError
    """
    answer = placement.get(
        "/resource_providers", params={key: value}, microversion="1.14", raise_exc=True
    )
    found: list[dict[str, str]] = answer.json()["resource_providers"]
    return found


def read_kernel(root: Path = Path("/")) -> Kernel:
    """Return what this kernel and its host offer to servers."""
    lines = (root / "proc/self/mounts").read_bytes().rstrip(b"\n").split(b"\n")
    # In a name the kernel escapes a space, a tab and the end of a line, but no other white space.
    mounts = [line.split(b" ") for line in lines]
    hierarchies = [(kind, options.split(b",")) for _, _, kind, options, *_ in mounts]
    enforce = root / "sys/fs/selinux/enforce"
    return Kernel(
        release=os.uname().release,
        systemd=any(
            (kind == b"cgroup" and b"name=systemd" in options)
            or (kind == b"cgroup2" and b"nsdelegate" in options)
            for kind, options in hierarchies
        ),
        loop_devices=(root / "dev/loop-control").exists(),
        selinux=enforce.exists() and enforce.read_text().strip() == "1",
    )


def missing_programs(mkisofs: str) -> list[str]:
    """Return the programs that the driver calls and that are not in the search path.

    :param mkisofs: Nova's option ``mkisofs_cmd``
    """
    return [name for name in (mkisofs, *_PROGRAMS) if not shutil.which(name)]


def read_engine(options: Options) -> tuple[EngineInfo | None, str]:
    """Return the engine's facts and an empty string; None and the error if it can't be read.

    :param options: the option group ``docker``
    """
    try:
        return Engine.from_options(options, _ENGINE_SECONDS).info(), ""
    except (
        exception.EngineUnavailable,
        exception.EngineError,
        exception.InvalidConfiguration,
    ) as error:
        return None, error.format_message()


def engine_socket() -> str:
    """Return the engine's own socket if this user, who is not root, can connect to it."""
    allowed = os.geteuid() != 0 and os.access(_ENGINE_SOCKET, os.W_OK)
    return _ENGINE_SOCKET if allowed else ""


def ask_shim(path: str) -> str:
    """Return why the runtime shim can't prepare containers, or an empty string if it can.

    The shim's Python program refuses an id that is not a container's; runc is not called.
    """
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return "not an executable file"
    try:
        done = subprocess.run(
            [path, "create", "check"],
            env={"PATH": _SYSTEMD_PATH},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SHIM_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not able to prepare containers: {error}"
    if _SHIM_REFUSAL in done.stderr:
        return ""
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return f"not able to prepare containers: {lines[-1]}"


def ask_switch(connection: str) -> str:
    """Return why Open vSwitch's database does not answer, or an empty string if it does."""
    try:
        ovsdb.call(connection, "echo", [])
    except OSError as error:
        return str(error.strerror)
    return ""


def read_datapaths(connection: str) -> dict[str, str] | None:
    """Return the datapath type of each bridge; None if Open vSwitch's database does not answer."""
    try:
        return ovs.read_datapaths(connection)
    except OSError:
        return None


def read_chassis(connection: str) -> Chassis | None:
    """Return OVN's settings of this host; None if Open vSwitch's database does not answer."""
    try:
        ((row,),) = ovsdb.select(connection, ovsdb.Select("Open_vSwitch", ("external_ids",)))
    except OSError:
        return None
    # RFC 7047, section 5.1: a map is ["map", [[key, value], ...]].
    settings = dict(row["external_ids"][1])
    return Chassis(settings.get("ovn-remote", ""), settings.get("hostname", ""))


def find_samples() -> str:
    """Return the directory of the sample files of this installation, else that of the checkout."""
    try:
        files = metadata.files("novadocker") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.match(f"etc/novadocker/{_SAMPLE}"):
            return str(Path(str(file.locate())).resolve().parents[1])
    # Debian's packages have no list of files.
    return _DEBIAN_SAMPLES if Path(_DEBIAN_SAMPLES, _SAMPLE).exists() else "etc"


def read_budgets(root: Path = Path("/proc/sys")) -> dict[str, int | None]:
    """Return the sysctls of ``checks.BUDGETS``; None for those that the kernel lacks."""
    found: dict[str, int | None] = {}
    for name in BUDGETS:
        try:
            found[name] = int((root / name.replace(".", "/")).read_text())
        except FileNotFoundError:
            found[name] = None
    return found


def user_name() -> str:
    """Return the name of the user that runs this process."""
    return pwd.getpwuid(os.geteuid()).pw_name


def call_privileged(configuration: cfg.ConfigOpts) -> PrivilegedCall:
    """Start each privileged process as nova-compute does, with its configuration files."""
    root_helper = utils.get_root_helper()
    priv_context.init(root_helper=shlex.split(root_helper))
    command = [sys.executable, "-c", _PRIVILEGED_CALL, root_helper, *_files(configuration)]
    # In a session without a terminal sudo fails instead of waiting for a password.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # The advice depends on sudo's messages, which are in the user's language.
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=_PRIVILEGED_SECONDS)
            reason = _reason(stderr) if process.returncode else ""
            without_volumes = process.returncode == privileged.NO_VOLUMES
            error, volumes_error = ("", reason) if without_volumes else (reason, "")
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout = volumes_error = ""
            error = f"the privileged processes did not answer within {_PRIVILEGED_SECONDS} s"
    contexts = {context.pypath: context for context in privileged.CONTEXTS}
    failed = stdout.strip() if error else ""
    # The last arguments are the context, and the path of a socket that differs at each start.
    command = contexts.get(failed, privsep.network_pctxt).helper_command("")[:-4]
    become_root, program, *arguments = command
    return PrivilegedCall(
        user=user_name(),
        root=os.geteuid() == 0,
        command=(become_root, _find_program(program), *arguments),
        error=error,
        missing_means=() if error else stdout.split(),
        context=failed,
        contexts=tuple(contexts),
        volumes_error=volumes_error,
        volumes_context=privileged.VOLUMES.pypath,
    )


def _find_program(name: str) -> str:
    """Return the path of a program; the directory of this interpreter is searched before PATH."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=folders) or name


def _files(configuration: cfg.ConfigOpts) -> list[str]:
    folders = configuration.config_dir or ()
    return [f"--config-file={path}" for path in configuration.config_file] + [
        f"--config-dir={path}" for path in folders
    ]


def _reason(stderr: str) -> str:
    """Return the last line of sudo or rootwrap; the last line of all if they wrote none."""
    lines = stderr.strip().splitlines() or ["no message"]
    of_helper = [line for line in lines if line.startswith(_HELPER_PREFIX)]
    return (of_helper or lines)[-1].removeprefix(_HELPER_PREFIX)
