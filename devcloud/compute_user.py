# SPDX-License-Identifier: Apache-2.0
"""The unprivileged system user of nova-compute, whose only sudo rule is for privsep-helper."""

import grp
import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path

from devcloud.configuration import common_values, render
from devcloud.settings import CHECKOUT, COMPUTE_USER, PRIVILEGED_HELPER_RULE, Host, Settings
from devcloud.steps import StepFailed

ENGINE_GROUP = "docker"


def run_checked(command: Sequence[str | Path]) -> None:
    """Run an administration command.

    :raises StepFailed: the command failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StepFailed(
            f"The command {' '.join(map(str, command))} failed: {done.stderr.strip()}",
            "run the command by hand and fix its error",
        )


def ensure_user() -> None:
    """Create the system user and add it to the engine's group. Idempotent."""
    try:
        pwd.getpwnam(COMPUTE_USER)
    except KeyError:
        run_checked(
            [
                *("useradd", "--system", "--user-group", "--home-dir", "/var/lib/nova"),
                *("--no-create-home", COMPUTE_USER),
            ]
        )
    # A locked account rejects public keys too, so the account is unlocked but has no valid
    # password. Migrations log in to it over SSH.
    run_checked(["usermod", "--shell", "/bin/sh", "--password", "*", COMPUTE_USER])
    if COMPUTE_USER not in grp.getgrnam(ENGINE_GROUP).gr_mem:
        run_checked(["usermod", "--append", "--groups", ENGINE_GROUP, COMPUTE_USER])


def ensure_sudo_rule(settings: Settings) -> None:
    """Write the sudo rule for the virtual environment's privsep-helper, checked by visudo."""
    text = render("sudoers", common_values(settings))
    if PRIVILEGED_HELPER_RULE.exists() and PRIVILEGED_HELPER_RULE.read_text() == text:
        return
    # sudo ignores file names that contain a dot, so a half-written file is never in force.
    draft = PRIVILEGED_HELPER_RULE.with_name(f"{PRIVILEGED_HELPER_RULE.name}.new")
    draft.write_text(text)
    draft.chmod(0o440)
    run_checked(["visudo", "--check", "--quiet", "--file", draft])
    draft.replace(PRIVILEGED_HELPER_RULE)


def ensure_folders(settings: Settings, host: Host) -> None:
    """Create the directories that nova-compute writes to and change their owner. Idempotent."""
    user = pwd.getpwnam(COMPUTE_USER)
    for state in ("nova", "nova-fake"):
        for folder in (state, f"{state}/locks", f"{state}/instances"):
            path = settings.host_data(host) / folder
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, user.pw_uid, user.pw_gid)


def require_readable(settings: Settings) -> None:
    """Check that the user can enter the checkout and the virtual environment.

    :raises StepFailed: a parent directory does not grant search permission to others.
    """
    for path in (CHECKOUT / "devcloud", settings.bin / "nova-compute", settings.etc):
        for folder in (path, *path.parents):
            if not folder.stat().st_mode & 0o001:
                raise StepFailed(
                    f"The user {COMPUTE_USER}, which runs nova-compute, cannot enter {folder}",
                    f"chmod o+x {folder}, or clone to a world-readable directory such as /opt",
                )
    python = subprocess.run(
        ["runuser", "-u", COMPUTE_USER, "--", settings.bin / "python3", "-c", "import nova.virt"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if python.returncode != 0:
        last = (python.stderr.strip().splitlines() or ["no message"])[-1]
        raise StepFailed(
            f"The user {COMPUTE_USER} cannot run {settings.bin}/python3: {last}",
            "make the checkout and the state directory readable for others (chmod -R o+rX)",
        )
