# SPDX-License-Identifier: Apache-2.0
"""PEP 517 backend: pbr's, plus the loader's ``.pth`` file at the root of every wheel.

Neither pbr nor setuptools can place a file directly in site-packages for both normal and editable
wheels. A wheel is a zip file with a list of its files, so this backend adds the file to the zip
file.

The runtime shim finds its package relative to its own path. An editable wheel would install a copy
of the script without the package, so this backend replaces the copy by a call of the checkout's.
"""

import base64
import hashlib
import os
import shlex
import subprocess
import zipfile
from pathlib import Path
from typing import Any

from pbr.build import *  # noqa: F403
from pbr.build import build_editable as _build_editable
from pbr.build import build_wheel as _build_wheel
from pbr.build import get_requires_for_build_editable as _get_requires_for_build_editable
from pbr.build import get_requires_for_build_wheel as _get_requires_for_build_wheel

_CHECKOUT = Path(__file__).resolve().parent.parent
_PTH = _CHECKOUT / "novadocker-loader.pth"
_SHIM = _CHECKOUT / "novadocker" / "runtime" / "novadocker-runtime"


def _complete(directory: str, wheel: str, scripts: dict[str, bytes]) -> str:
    """Add the loader to a wheel and replace scripts.

    :param scripts: contents by names
    """
    path = Path(directory, wheel)
    content = _PTH.read_bytes()
    source = path.with_suffix(".tmp")
    path.rename(source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        lines = {}
        for entry in old.infolist():
            data = old.read(entry)
            if ".data/scripts/" in entry.filename and Path(entry.filename).name in scripts:
                data = scripts[Path(entry.filename).name]
                lines[entry.filename] = _line(entry.filename, data)
            if entry.filename.endswith(".dist-info/RECORD"):
                # RECORD is the last file of a wheel.
                found = data.decode().splitlines()
                found = [lines.get(line.split(",")[0], line) for line in found]
                data = "".join(f"{line}\n" for line in [*found, _line(_PTH.name, content)]).encode()
                # SOURCE_DATE_EPOCH determines the date of RECORD, so the loader's entry copies it.
                loader = zipfile.ZipInfo(_PTH.name, entry.date_time)
                # Some installers ignore the umask; nova-compute is not root and must read the file.
                loader.external_attr = 0o100644 << 16
                new.writestr(loader, content, zipfile.ZIP_DEFLATED)
            new.writestr(entry, data)
    source.unlink()
    return wheel


def _line(name: str, content: bytes) -> str:
    """Return the line of RECORD for a file."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


def check_version_source() -> None:
    """Check that pbr finds the version: in git, in a source archive, or in ``PBR_VERSION``.

    :raises RuntimeError: it does not; pbr's own message does not name the cause
    """
    if "PBR_VERSION" in os.environ or (_CHECKOUT / "PKG-INFO").exists():
        return
    elsewhere = "or build a wheel on another machine (python3 -m build --wheel) and install that"
    if not (_CHECKOUT / ".git").exists():
        raise RuntimeError(f"{_CHECKOUT} is no git checkout: clone the repository, {elsewhere}")
    try:
        git = subprocess.run(
            ["git", "-C", _CHECKOUT, "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise RuntimeError(f"git is not installed: install it, {elsewhere}") from None
    if git.returncode != 0:
        reason = git.stderr.strip().splitlines()[0]
        raise RuntimeError(
            f"git does not read {_CHECKOUT} ({reason}): the checkout must belong to the user who "
            f"installs it, {elsewhere}"
        )


def get_requires_for_build_wheel(*args: Any, **kwargs: Any) -> list[str]:
    """Return what a wheel needs to be built; the first call of an installer."""
    check_version_source()
    found: list[str] = _get_requires_for_build_wheel(*args, **kwargs)
    return found


def get_requires_for_build_editable(*args: Any, **kwargs: Any) -> list[str]:
    """Return what an editable wheel needs to be built; the first call of an installer."""
    check_version_source()
    found: list[str] = _get_requires_for_build_editable(*args, **kwargs)
    return found


def build_wheel(wheel_directory: str, *args: Any, **kwargs: Any) -> str:
    """Build a wheel that contains the loader."""
    return _complete(wheel_directory, _build_wheel(wheel_directory, *args, **kwargs), {})


def build_editable(wheel_directory: str, *args: Any, **kwargs: Any) -> str:
    """Build an editable wheel that contains the loader and calls the checkout's runtime shim."""
    wheel = _build_editable(wheel_directory, *args, **kwargs)
    call = f'#!/bin/sh\nexec {shlex.quote(str(_SHIM))} "$@"\n'
    return _complete(wheel_directory, wheel, {_SHIM.name: call.encode()})
