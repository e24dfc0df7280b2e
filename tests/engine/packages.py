# SPDX-License-Identifier: Apache-2.0
"""Programs of newer Debian releases, which run on Debian 12.

Debian 13 (trixie) has Engine 26.1, and the release after it (forky) the newest engine in Debian.
Both run with Debian 12's runc and libraries. CRIU needs newer libraries, so it has its own.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from devcloud.settings import load_settings

_PACKAGES = ("docker.io", "containerd")
_CRIU_SUITE = "sid"
# As docs/suspend.rst describes it.
_CRIU = """\
#!/bin/sh
here={root}
exec "$here/usr/lib64/ld-linux-x86-64.so.2" --library-path "$here/usr/lib/x86_64-linux-gnu" \
    "$here/usr/sbin/criu" "$@"
"""
_SECONDS = 300
_LONGEST_NAME = 200
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
    root = _locked(folder, suite, network, lambda _: _PACKAGES)
    return os.pathsep.join((str(root / "usr/sbin"), str(root / "usr/bin"), os.environ["PATH"]))


def criu(network: str) -> str:
    """Return the path of the program ``criu``, a copy with libraries of its own.

    :param network: as for ``search_path``
    """
    root = _locked(load_settings().folder / "criu", _CRIU_SUITE, network, _with_libraries)
    program = root / "bin" / "criu"
    if not program.exists():
        program.parent.mkdir(exist_ok=True)
        program.write_text(_CRIU.format(root=root))
        program.chmod(0o755)
    return str(program)


def _with_libraries(environment: Mapping[str, str]) -> Sequence[str]:
    left_out = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    options = ("--recurse", *(f"--no-{kind}" for kind in left_out))
    shown = subprocess.run(
        ["apt-cache", "depends", *options, "criu"],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return sorted(set(re.findall(r"^\w\S*", shown, re.MULTILINE)))


def _locked(
    folder: Path,
    suite: str,
    network: str,
    packages: Callable[[Mapping[str, str]], Sequence[str]],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _newest(folder, suite, network, packages)


def _newest(
    folder: Path,
    suite: str,
    network: str,
    packages: Callable[[Mapping[str, str]], Sequence[str]],
) -> Path:
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(_SOURCE.format(suite=suite))
    configuration = folder / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder))
    environment = {**os.environ, "APT_CONFIG": str(configuration)}
    apt = ("nsenter", f"--net={network}", "apt-get", "-qq")
    _run(environment, folder, *apt, "update")
    wanted = packages(environment)
    shown = _run(environment, folder, *apt, "--print-uris", "download", *wanted)
    names = sorted(re.findall(r"' (\S+\.deb) ", shown))
    root = folder / _name("+".join(name.removesuffix(".deb") for name in names))
    if not root.exists():
        for older in (*folder.glob("*_*"), folder / "draft"):
            shutil.rmtree(older, ignore_errors=True)
        draft = folder / "draft"
        draft.mkdir()
        _run(environment, draft, *apt, "download", *wanted)
        for package in draft.glob("*.deb"):
            _run(environment, draft, "dpkg", "-x", str(package), str(draft))
            package.unlink()
        draft.rename(root)
    return root


def _name(versions: str) -> str:
    """Return a name for the directory of these versions, short enough for a file system."""
    if len(versions) <= _LONGEST_NAME:
        return versions
    return f"packages_{hashlib.sha256(versions.encode()).hexdigest()}"


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
