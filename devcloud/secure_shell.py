# SPDX-License-Identifier: Apache-2.0
"""The keys by which nova-compute's user gets from host to host."""

import os
import pwd
from pathlib import Path

from devcloud.compute_user import run_checked
from devcloud.settings import COMPUTE_USER, Settings

# sshd wants it and does not make it
PRIVILEGE_SEPARATION = Path("/run/sshd")


def ensure_keys(settings: Settings) -> None:
    """Make the user's key and the hosts', and have the user know the hosts'."""
    folder = settings.data / "ssh"
    folder.mkdir(parents=True, exist_ok=True)
    PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    for name in ("host_key", "identity"):
        if not (folder / name).exists():
            run_checked(["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", folder / name])
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"devcloud {kind} {key}\n")
    user = pwd.getpwnam(COMPUTE_USER)
    os.chown(folder / "identity", user.pw_uid, user.pw_gid)
