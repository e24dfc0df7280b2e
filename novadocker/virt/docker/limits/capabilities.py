# SPDX-License-Identifier: Apache-2.0
"""The capabilities of servers, without those that an extra spec adds (``extra_specs``).

Imports nothing, because the proxy of the engine's socket compares requests with these lists.
"""

# The engine's default list (moby/oci/caps) with three changes. It lacks MKNOD, because the device
# cgroup denies access to nodes created inside. It has SYS_PTRACE, so that root can trace processes
# of other users of the instance; processes outside are not visible. It has SYS_BOOT, so that the
# exit status of the first process tells a reboot from a power-off.
CAPABILITIES = (
    # Because sudo, su and sshd fail without it if the kernel supports audit.
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_PTRACE",
)
NESTING = ("MKNOD", "NET_ADMIN", "SYS_ADMIN")
"""An engine inside needs these to mount file systems, create devices and networks of containers."""
