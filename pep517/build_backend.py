# SPDX-License-Identifier: Apache-2.0
"""PEP 517 backend: pbr's, plus the loader's ``.pth`` file at the root of every wheel.

Neither pbr nor setuptools can place a file directly in site-packages for both normal and editable
wheels. A wheel is a zip file with a list of its files, so this backend adds the file to the zip
file.
"""

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from pbr.build import *  # noqa: F403
from pbr.build import build_editable as _build_editable
from pbr.build import build_wheel as _build_wheel

_PTH = Path(__file__).resolve().parent.parent / "novadocker-loader.pth"


def _add_loader(directory: str, wheel: str) -> str:
    path = Path(directory, wheel)
    content = _PTH.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    source = path.with_suffix(".tmp")
    path.rename(source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                data += f"{_PTH.name},sha256={digest},{len(content)}\n".encode()
                # SOURCE_DATE_EPOCH determines the date of RECORD, so the loader's entry copies it.
                loader = zipfile.ZipInfo(_PTH.name, entry.date_time)
                # Some installers ignore the umask; nova-compute is not root and must read the file.
                loader.external_attr = 0o100644 << 16
                new.writestr(loader, content, zipfile.ZIP_DEFLATED)
            new.writestr(entry, data)
    source.unlink()
    return wheel


def build_wheel(wheel_directory: str, *args: Any, **kwargs: Any) -> str:
    """Build a wheel that contains the loader."""
    return _add_loader(wheel_directory, _build_wheel(wheel_directory, *args, **kwargs))


def build_editable(wheel_directory: str, *args: Any, **kwargs: Any) -> str:
    """Build an editable wheel that contains the loader."""
    return _add_loader(wheel_directory, _build_editable(wheel_directory, *args, **kwargs))
