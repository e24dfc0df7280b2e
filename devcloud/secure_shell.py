# SPDX-License-Identifier: Apache-2.0
"""The SSH keys of nova-compute's user, for migrations between hosts."""

import os
import pwd
from pathlib import Path

from devcloud.compute_user import run_checked
from devcloud.settings import COMPUTE_USER, Settings

# sshd requires this directory and does not create it.
PRIVILEGE_SEPARATION = Path("/run/sshd")


def ensure_keys(settings: Settings) -> None:
    """Create the user's key and the hosts' key, and write the user's known_hosts. Idempotent."""
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
