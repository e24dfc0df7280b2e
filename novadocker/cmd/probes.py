# SPDX-License-Identifier: Apache-2.0
"""Reading the facts that ``checks`` judges from this host, each within bounded time."""

import importlib
import os
import pwd
import shlex
import shutil
import signal
import site
import subprocess
import sys
from pathlib import Path

from nova import objects, utils
from oslo_config import cfg
from oslo_privsep import priv_context

import novadocker
from novadocker import _loader, exception, privsep
from novadocker.cmd import privileged
from novadocker.cmd.checks import BUDGETS, Chassis, DriverImport, PrivilegedCall
from novadocker.linux import ovsdb
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import Options
from novadocker.virt.docker.model import EngineInfo
from novadocker.virt.docker.network import ovs

_ENGINE_SECONDS = 10
_ENGINE_SOCKET = "/run/docker.sock"
_PRIVILEGED_SECONDS = 30
_SHIM_SECONDS = 10
_SHIM_REFUSAL = "the container id is not an id of the engine"
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
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=_PRIVILEGED_SECONDS)
            error = _reason(stderr) if process.returncode else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout = ""
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
