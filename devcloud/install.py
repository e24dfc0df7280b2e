# SPDX-License-Identifier: Apache-2.0
"""Debian packages and the virtual environment. Standard library only: it runs before both."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from devcloud.settings import CHECKOUT, Settings
from devcloud.steps import StepFailed, run_command, step

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "packages.txt"
REQUIREMENTS = HERE / "requirements.txt"
CONSTRAINTS = HERE / "constraints.txt"
DRIVER_REQUIREMENTS = CHECKOUT / "requirements.txt"
TEST_REQUIREMENTS = CHECKOUT / "test-requirements.txt"
DOC_REQUIREMENTS = CHECKOUT / "docs" / "requirements.txt"

PROJECT_FILES = ("setup.cfg", "setup.py", "pyproject.toml")
"""A change of these files requires a new ``pip install -e``; a change of the code does not."""

POLICY = Path("/usr/sbin/policy-rc.d")

# The unprivileged nova-compute cannot enter a Python installation below a home directory.
SYSTEM_PYTHON = Path("/usr/bin/python3")


def list_lines(path: Path) -> list[str]:
    """Return a file's lines without comments and empty lines."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def missing_packages(names: Sequence[str]) -> list[str]:
    """Return the Debian packages of a list that are not installed."""
    query = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    states = (line.split() for line in query.stdout.splitlines())
    installed = {state[1] for state in states if len(state) == 2 and state[0] == "installed"}
    return [name for name in names if name not in installed]


def install_packages(settings: Settings, listed: Path = PACKAGES) -> None:
    """Install the missing Debian packages of a list, without starting their daemons."""
    missing = missing_packages(list_lines(listed))
    if not missing:
        return
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    advice = "fix apt-get's error (package lists, network, disk) and run the command again"
    # The installation must not start the machine's own MariaDB, RabbitMQ, Docker and so on.
    forbid_start = not POLICY.exists()
    if forbid_start:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        with step(f"Debian packages: {' '.join(missing)}"):
            for arguments in (
                ["update", "-q"],
                ["install", "-qy", "--no-install-recommends", *missing],
            ):
                run_command(
                    ["apt-get", *arguments],
                    log=settings.log / f"apt-{arguments[0]}.log",
                    advice=advice,
                    timeout=1800,
                    environment=environment,
                )
    finally:
        if forbid_start:
            POLICY.unlink()


def requirement_files() -> list[Path]:
    """Return the requirement files of the cloud, the driver, the tests and the documentation."""
    candidates = (REQUIREMENTS, DRIVER_REQUIREMENTS, TEST_REQUIREMENTS, DOC_REQUIREMENTS)
    return [path for path in candidates if path.exists()]


def digest_of(paths: Iterable[Path]) -> str:
    """Return a digest of the files that define an environment; missing files are allowed."""
    digest = hashlib.sha256(str(CHECKOUT).encode())
    for path in paths:
        digest.update(path.name.encode())
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def ensure_environment(
    settings: Settings,
    venv: Path,
    requirements: Sequence[Path],
    constraints: Path,
    *,
    made_from: Sequence[Path] = (),
    editable: Path | None = None,
) -> None:
    """Create a virtual environment, or update it to its requirement files.

    :param venv: its directory; the name of the parent directory names its logs.
    :param constraints: the exact versions of all packages.
    :param made_from: further files whose change requires a new installation.
    :param editable: a checkout to install too, without its dependencies.
    :raises StepFailed: a package cannot be installed.
    """
    stamp_file = venv / ".devcloud-stamp"
    stamp = digest_of([*requirements, constraints, *made_from])
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return
    name = "" if venv == settings.venv else f"-{venv.parent.name}"
    advice = "fix pip's error (package index, network, disk) and run the command again"
    if not (venv / "bin" / "pip").exists():
        with step(f"virtual environment {venv}"):
            python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else Path(sys.executable)
            run_command(
                [python, "-m", "venv", "--clear", venv],
                log=settings.log / f"venv{name}.log",
                advice="apt-get install python3-venv",
            )
    pip: list[str | Path] = [venv / "bin" / "pip", "--disable-pip-version-check"]
    with step("Python packages (a few minutes the first time)"):
        listed: list[str | Path] = [argument for path in requirements for argument in ("-r", path)]
        run_command(
            [*pip, "install", "-c", constraints, *listed],
            log=settings.log / f"pip{name}.log",
            advice=advice,
            timeout=3600,
        )
    if editable is not None:
        with step("novadocker, editable"):
            run_command(
                [*pip, "install", "--no-deps", "--no-build-isolation", "-e", editable],
                log=settings.log / "pip-novadocker.log",
                advice=advice,
                timeout=600,
            )
    stamp_file.write_text(stamp)


def install_environment(settings: Settings) -> None:
    """Create the cloud's virtual environment, or update it."""
    ensure_environment(
        settings,
        settings.venv,
        requirement_files(),
        CONSTRAINTS,
        made_from=[CHECKOUT / name for name in PROJECT_FILES],
        editable=CHECKOUT,
    )


def install(settings: Settings) -> None:
    """Install everything; takes a fraction of a second if nothing changed.

    :raises StepFailed: the user is not root, or a package cannot be installed.
    """
    if os.geteuid() != 0:
        raise StepFailed("The cloud needs root", "run it as root, for example with sudo")
    install_packages(settings)
    install_environment(settings)
