# SPDX-License-Identifier: Apache-2.0
"""The Docker Engines of newer Debian releases, which run on Debian 12 with its runc.

Debian 13 (trixie) has Engine 26.1, and the release after it (forky) the newest engine in Debian.
"""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from devcloud.settings import load_settings

_PACKAGES = ("docker.io", "containerd")
_SECONDS = 300
_SOURCE = (
    "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    "http://deb.debian.org/debian {suite} main\n"
)
# "Acquire" leaves out the translations and the lists of files, which are larger than the packages.
_CONFIGURATION = """\
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
APT::Sandbox::User "root";
"""


def search_path(suite: str, network: str) -> str:
    """Return the PATH on which the engine of a Debian release is the first.

    The function downloads the engine, or its newer version. It keeps one version of each release in
    the state directory of the development cloud.

    :param network: the path of a network namespace that reaches Debian's packages
    """
    folder = load_settings().folder / "engines" / suite
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = _newest(folder, suite, network)
    return os.pathsep.join((str(root / "usr/sbin"), str(root / "usr/bin"), os.environ["PATH"]))


def _newest(folder: Path, suite: str, network: str) -> Path:
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(_SOURCE.format(suite=suite))
    configuration = folder / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder))
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    apt = ("nsenter", f"--net={network}", "apt-get", "-qq")
    _run(environment, folder, *apt, "update")
    shown = _run(environment, folder, *apt, "--print-uris", "download", *_PACKAGES)
    names = sorted(re.findall(r"' (\S+\.deb) ", shown))
    root = folder / "+".join(name.removesuffix(".deb") for name in names)
    if not root.exists():
        for older in (*folder.glob("*_*"), folder / "draft"):
            shutil.rmtree(older, ignore_errors=True)
        draft = folder / "draft"
        draft.mkdir()
        _run(environment, draft, *apt, "download", *_PACKAGES)
        for package in draft.glob("*.deb"):
            _run(environment, draft, "dpkg", "-x", str(package), str(draft))
            package.unlink()
        draft.rename(root)
    return root


def _run(environment: Mapping[str, str], folder: Path, *command: str) -> str:
    return subprocess.run(
        command,
        env=environment,
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_SECONDS,
    ).stdout
