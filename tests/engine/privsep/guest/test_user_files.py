# SPDX-License-Identifier: Apache-2.0
"""Inotify instances in user namespaces, as the kernel charges them."""

import subprocess
import sys

from novadocker.linux import user_files
from novadocker.privsep.guest.user_files import count_user_files

PROGRAM = """
import ctypes, sys
libc = ctypes.CDLL(None)
assert min(libc.inotify_init1(0) for _ in range(20)) >= 0
print(flush=True)
sys.stdin.read()
"""
USER = 4_000_000


def test_user_namespaces() -> None:
    """A namespace that another user has made, with one inside it of its own."""
    before = user_files.count().inotify
    assert before[USER] == 0
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    command += ["unshare", "--user", "--map-root-user"] * 2
    with subprocess.Popen(
        [*command, sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        # Once for the user of the process, and once for each namespace, which this user made.
        assert user_files.count().inotify[USER] == 60
        assert count_user_files()[0] >= 60
        process.stdin.close()
    assert user_files.count().inotify[USER] == 0
