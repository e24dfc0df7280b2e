# SPDX-License-Identifier: Apache-2.0
"""``novadocker-engine-config``: registers the runtime shim in the engine's ``daemon.json``.

Keeps everything that the file contains, such as other runtimes.
"""

import argparse
import json
import os
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from novadocker import engine_paths
from novadocker.exporter import host
from novadocker.linux.files import replace_file

RUNTIME = "novadocker"
"""The name of the runtime, which is the default of the option ``[docker] runtime``."""

NEW_FILE: Mapping[str, object] = {
    "bridge": "none",
    "iptables": False,
    "ip6tables": False,
    "ip-forward": False,
    "userland-proxy": False,
    "live-restore": True,
    "storage-driver": "overlay2",
}
"""Settings of a host whose engine runs only servers. docs/install.rst explains them."""

DAEMON_JSON = Path("/etc/docker/daemon.json")
DATA_ROOT = Path("/var/lib/docker")
ENGINE_SOCKET = "/run/docker.sock"
SNAP = Path("/var/snap/docker")
SHIM = "novadocker-runtime"
PACKAGED = "/usr/lib/novadocker"
"""The directory of the shim in Debian's packages."""

_READABLE = 0o644


class ConfigError(Exception):
    """The file can't be changed; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or print the error on stderr and return 1."""
    options = _parser().parse_args(arguments)
    try:
        changed = _unregister(options.file) if options.remove else _register(options)
    except (ConfigError, OSError) as error:
        print(f"novadocker-engine-config: {error}", file=sys.stderr)
        return 1
    print(f"changed {options.file}" if changed else f"{options.file} is unchanged")
    return 0


def merge(current: Mapping[str, Any] | None, shim: str) -> dict[str, Any]:
    """Return the engine's configuration with the runtime shim.

    :param current: the configuration so far; None if there is no file
    :param shim: path of the runtime shim
    :raises ConfigError: a setting of ``current`` has a form that the engine does not accept
    """
    # An engine that has a configuration may run other containers, which need its networks and find
    # their images only with their storage driver.
    merged = dict(NEW_FILE) if current is None else {**current, "live-restore": True}
    merged["runtimes"] = {**_runtimes(merged), RUNTIME: {"path": shim}}
    return merged


def without(current: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's configuration without the runtime shim.

    :raises ConfigError: a setting of ``current`` has a form that the engine does not accept
    """
    runtimes = {name: value for name, value in _runtimes(current).items() if name != RUNTIME}
    others = {name: value for name, value in current.items() if name != "runtimes"}
    return {**others, "runtimes": runtimes} if runtimes else others


def _runtimes(configuration: Mapping[str, Any]) -> dict[str, Any]:
    runtimes = configuration.get("runtimes", {})
    if not isinstance(runtimes, dict):
        raise ConfigError("the value of runtimes is not a JSON object")
    return runtimes


def _register(options: argparse.Namespace) -> bool:
    if options.file == DAEMON_JSON and SNAP.exists() and not shutil.which("dockerd"):
        raise ConfigError(
            f"the engine is a snap ({SNAP}), which cannot start a runtime of the host: install the "
            "engine of the distribution or of Docker instead"
        )
    shim = options.shim or shutil.which(SHIM, path=_search_path())
    if shim is None:
        raise ConfigError(f"{SHIM} was not found: give its path with --shim")
    if not os.path.isabs(shim) or not os.access(shim, os.X_OK):
        raise ConfigError(f"{shim} is not the absolute path of an executable file")
    current = _read(options.file)
    data_root = _data_root(options.file, current)
    for root in _roots(data_root):
        if engine_paths.swarm_state(root).exists():
            raise ConfigError(
                "the engine is a node of a swarm, so it does not start with live-restore, which "
                "servers need: leave the swarm first (docker swarm leave)"
            )
    # The networks of containers that exist stay, too, if the engine has no configuration.
    known = {} if current is None and _runtimes_of_containers(data_root) else current
    return _write(options.file, current, merge(known, shim))


def _unregister(file: Path) -> bool:
    current = _read(file)
    if current is None:
        return False
    data_root = _data_root(file, current)
    known = any(engine_paths.containers(root).is_dir() for root in _roots(data_root))
    if not known and shutil.which("dockerd"):
        raise ConfigError(
            f"the engine does not answer, and {data_root} is not its data root, so servers may use "
            f"the runtime and {file} was not changed: start the engine first"
        )
    users = _runtimes_of_containers(data_root).count(RUNTIME)
    if users:
        # An engine that does not know the runtime of a running container does not take the
        # container over at its next start.
        raise ConfigError(
            f"servers of the engine use the runtime ({users}), so {file} was not changed: delete "
            "or migrate the servers first"
        )
    return _write(file, current, without(current))


def _data_root(file: Path, current: Mapping[str, Any] | None) -> Path:
    """Return the data root of the engine; the one of its configuration if it does not run.

    :raises ConfigError: the configuration names a data root in a form that the engine refuses
    """
    configured = (current or {}).get("data-root", "")
    if not isinstance(configured, str):
        raise ConfigError("the value of data-root is not a string")
    # The command line of dockerd may name the data root, too. Another file may be another engine's.
    answer = host.ask_engine(ENGINE_SOCKET, "/info") if file == DAEMON_JSON else None
    if answer is not None:
        try:
            return Path(json.loads(answer)["DockerRootDir"])
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"the engine did not answer with its data root: {error}") from error
    return Path(configured or DATA_ROOT)


def _roots(data_root: Path) -> tuple[Path, ...]:
    """Return the directories that may have the engine's data; userns-remap uses a level deeper."""
    return (data_root, *data_root.glob("*.*"))


def _runtimes_of_containers(data_root: Path) -> list[str]:
    """Return the runtime of each container."""
    found = []
    for root in _roots(data_root):
        for path in engine_paths.containers(root).glob("*/hostconfig.json"):
            try:
                found.append(str(json.loads(path.read_bytes())["Runtime"]))
            except (ValueError, LookupError, TypeError):
                # The container exists, and its damaged record does not exclude the shim.
                found.append(RUNTIME)
    return found


def _search_path() -> str:
    """Return the directories of programs; the directory of this interpreter is the first one."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), PACKAGED])


def _read(file: Path) -> dict[str, Any] | None:
    """Return the configuration of a file; None if the file is missing or empty.

    :raises ConfigError: the file is not a JSON object
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not in UTF-8: {error.reason}") from error
    if not text.strip():
        return None
    try:
        configuration = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON, so it was not changed: {error}") from error
    if not isinstance(configuration, dict):
        raise ConfigError(f"{file} is not a JSON object, so it was not changed")
    return configuration


def _write(file: Path, current: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Write the configuration unless the file has it. Return True if the file changed."""
    if current == wanted:
        return False
    # An operator may have made the file a link.
    target = file.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else _READABLE
    content = json.dumps(wanted, indent=2).encode() + b"\n"
    replace_file(target, content, mode=mode, sync=True)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="novadocker-engine-config",
        description="Registers the runtime shim of novadocker in the configuration of the Docker "
        "Engine, and keeps everything else that the configuration has. Reload the engine "
        "afterwards.",
    )
    parser.add_argument("--file", type=Path, default=DAEMON_JSON, help="(default: %(default)s)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--shim", help=f"path of {SHIM}, by default the one of this installation")
    action.add_argument("--remove", action="store_true", help="remove the runtime shim instead")
    return parser
