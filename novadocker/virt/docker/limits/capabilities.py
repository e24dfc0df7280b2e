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
ALL = "ALL"
"""The engine's word for all capabilities. In a user namespace the kernel grants them over what
belongs to the namespace; an engine inside gives them to its privileged containers."""
NESTING_VOLUMES = ("/var/lib/containerd", "/var/lib/containers", "/var/lib/docker")
"""The data of engines inside, whose overlays the kernel does not mount on an overlay."""
