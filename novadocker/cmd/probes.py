# SPDX-License-Identifier: Apache-2.0
"""The facts that ``checks`` judges, read from this host; each within bounded time."""

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
from ovs import stream

import novadocker
from novadocker import _loader, exception, privsep
from novadocker.cmd.checks import DriverImport, PrivilegedCall
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import Tls
from novadocker.virt.docker.model import EngineInfo
from novadocker.virt.docker.network import ovs

_ENGINE_SECONDS = 10
_SWITCH_MILLISECONDS = 5_000
_PRIVILEGED_SECONDS = 30

# what oslo.privsep puts before a line of the helper's
_SAID_BY_HELPER = "privsep log: "
_PRIVILEGED_CALL = "import sys; from novadocker.cmd import privileged; sys.exit(privileged.main())"


def import_driver() -> DriverImport:
    """Import the driver as nova-compute does, and tell what came of it."""
    # nova-compute has done so before it loads the driver
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


def read_engine(url: str, tls: Tls) -> tuple[EngineInfo | None, str]:
    """Return the engine's facts, or None and the reason."""
    try:
        return Engine(url, _ENGINE_SECONDS, _ENGINE_SECONDS, tls).info(), ""
    except (
        exception.EngineUnavailable,
        exception.EngineError,
        exception.InvalidConfiguration,
    ) as error:
        return None, error.format_message()


def is_executable(path: str) -> bool:
    """Say whether there is a program at a path."""
    return os.path.isfile(path) and os.access(path, os.X_OK)


def connect_switch(connection: str) -> str:
    """Connect to Open vSwitch's database; return what is wrong, or nothing."""
    error, connected = stream.Stream.open_block(
        stream.Stream.open(connection), _SWITCH_MILLISECONDS
    )
    if connected is not None:
        connected.close()
    return os.strerror(error) if error else ""


def read_datapaths(connection: str) -> dict[str, str] | None:
    """Return the datapath type of each bridge of the switch, or None if it does not answer."""
    try:
        return ovs.read_datapaths(connection)
    except OSError:
        return None


def user_name() -> str:
    """Return the name of the user who runs this."""
    return pwd.getpwuid(os.geteuid()).pw_name


def call_privileged(configuration: cfg.ConfigOpts) -> PrivilegedCall:
    """Make a privileged call as nova-compute would, with its configuration files."""
    root_helper = utils.get_root_helper()
    priv_context.init(root_helper=shlex.split(root_helper))
    # the last word is the path of a socket
    become_root, program, *arguments = privsep.network_pctxt.helper_command("")[:-1]
    command = [sys.executable, "-c", _PRIVILEGED_CALL, root_helper, *_files(configuration)]
    # without a terminal sudo can't wait for a password
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
            error = f"no answer within {_PRIVILEGED_SECONDS} s"
    return PrivilegedCall(
        user=user_name(),
        root=os.geteuid() == 0,
        command=(become_root, _find_program(program), *arguments),
        error=error,
        missing_means=stdout.split(),
    )


def _find_program(name: str) -> str:
    """Return the path of a program, in this interpreter's folder before all others."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=folders) or name


def _files(configuration: cfg.ConfigOpts) -> list[str]:
    folders = configuration.config_dir or ()
    return [f"--config-file={path}" for path in configuration.config_file] + [
        f"--config-dir={path}" for path in folders
    ]


def _reason(stderr: str) -> str:
    """Return the line that tells most: sudo's or rootwrap's own, else the last one."""
    lines = stderr.strip().splitlines() or ["no message"]
    said = [line for line in lines if line.startswith(_SAID_BY_HELPER)]
    return (said or lines)[-1].removeprefix(_SAID_BY_HELPER)
