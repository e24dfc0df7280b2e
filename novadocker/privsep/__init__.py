# SPDX-License-Identifier: Apache-2.0
"""Every function that runs as root is below this directory and enters one of its contexts.

This module does not import Nova, because the helper process imports it and must stay small.
"""

from oslo_privsep import capabilities, comm, daemon, priv_context

# No privileged call takes more than a few seconds, whatever a tenant does, so one that takes a
# minute hangs. The bound frees the thread of nova-compute that waits for it.
_TIMEOUT_SECONDS = 60
# Calls that read or write all data of an instance take longer.
_STORAGE_TIMEOUT_SECONDS = 3600

UNANSWERED = (comm.PrivsepTimeout, daemon.FailedToDropPrivileges)
"""Errors of a call that the privileged process did not answer; neither is an OSError."""

network_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_network",
    pypath=f"{__name__}.network_pctxt",
    # NET_ADMIN: links, addresses and routes. SYS_ADMIN: enter and mount network namespaces.
    # SETUID, SETGID: map ids into user namespaces. SYS_PTRACE, DAC_OVERRIDE: open the namespaces
    # and the maps of a process of another user, which creates a user namespace.
    capabilities=[
        capabilities.CAP_NET_ADMIN,
        capabilities.CAP_SYS_ADMIN,
        capabilities.CAP_SYS_PTRACE,
        capabilities.CAP_DAC_OVERRIDE,
        capabilities.CAP_SETUID,
        capabilities.CAP_SETGID,
    ],
    timeout=_TIMEOUT_SECONDS,
)

interior_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_interior",
    pypath=f"{__name__}.interior_pctxt",
    # SYS_PTRACE: open a container's root by /proc/PID/root. KILL: signal processes of any user.
    # DAC_OVERRIDE: open files of any owner. CHOWN, FOWNER: keep their owner and mode. SETUID,
    # SETGID: create files as a container's root user.
    capabilities=[
        capabilities.CAP_SYS_PTRACE,
        capabilities.CAP_KILL,
        capabilities.CAP_SETUID,
        capabilities.CAP_SETGID,
        capabilities.CAP_DAC_OVERRIDE,
        capabilities.CAP_CHOWN,
        capabilities.CAP_FOWNER,
    ],
    timeout=_TIMEOUT_SECONDS,
)

storage_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_storage",
    pypath=f"{__name__}.storage_pctxt",
    # DAC_OVERRIDE: open files of any owner. SYS_ADMIN: extended attributes of overlayfs.
    # SYS_PTRACE: duplicate the caller's file descriptor.
    capabilities=[
        capabilities.CAP_DAC_OVERRIDE,
        capabilities.CAP_SYS_ADMIN,
        capabilities.CAP_SYS_PTRACE,
    ],
    timeout=_STORAGE_TIMEOUT_SECONDS,
)

view_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_view",
    pypath=f"{__name__}.view_pctxt",
    # SYS_PTRACE: open a container's mount namespace by /proc/PID/ns. SYS_CHROOT: enter it.
    # SYS_ADMIN: enter it and mount in it.
    capabilities=[
        capabilities.CAP_SYS_PTRACE,
        capabilities.CAP_SYS_CHROOT,
        capabilities.CAP_SYS_ADMIN,
    ],
    timeout=_TIMEOUT_SECONDS,
)

transfer_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_transfer",
    pypath=f"{__name__}.transfer_pctxt",
    # DAC_OVERRIDE: open files of any owner. CHOWN, FOWNER, FSETID, MKNOD, SETFCAP: keep owner,
    # mode, device nodes and file capabilities. SYS_ADMIN: extended attributes of overlayfs.
    # SYS_PTRACE: duplicate the caller's end of a pipe.
    capabilities=[
        capabilities.CAP_DAC_OVERRIDE,
        capabilities.CAP_CHOWN,
        capabilities.CAP_FOWNER,
        capabilities.CAP_FSETID,
        capabilities.CAP_MKNOD,
        capabilities.CAP_SETFCAP,
        capabilities.CAP_SYS_ADMIN,
        capabilities.CAP_SYS_PTRACE,
    ],
    timeout=_STORAGE_TIMEOUT_SECONDS,
)

volume_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_volume",
    pypath=f"{__name__}.volume_pctxt",
    # MKNOD, CHOWN: create device nodes for a container's root user. SETUID, SETGID: create their
    # mount points as this user. SYS_PTRACE, DAC_OVERRIDE: look for open devices in /proc and open
    # a container's mount namespace. SYS_CHROOT: enter it. SYS_ADMIN: enter it, mount in it, and
    # replace the filter of devices on cgroup v2. NET_ADMIN: attach the filter.
    capabilities=[
        capabilities.CAP_MKNOD,
        capabilities.CAP_CHOWN,
        capabilities.CAP_SETUID,
        capabilities.CAP_SETGID,
        capabilities.CAP_SYS_PTRACE,
        capabilities.CAP_DAC_OVERRIDE,
        capabilities.CAP_SYS_CHROOT,
        capabilities.CAP_SYS_ADMIN,
        capabilities.CAP_NET_ADMIN,
    ],
    timeout=_TIMEOUT_SECONDS,
)
