# SPDX-License-Identifier: Apache-2.0
"""The privileged contexts; nothing runs as root outside functions entered through one.

Kept free of Nova: the helper process imports it, and stays small.
"""

from oslo_privsep import capabilities, priv_context

# no privileged call takes a second; a helper that hangs must not hold up a thread of nova-compute
_TIMEOUT_SECONDS = 60
# but to read all that a server wrote
_STORAGE_TIMEOUT_SECONDS = 3600

network_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_network",
    pypath=f"{__name__}.network_pctxt",
    # links, addresses and routes | to enter and to mount a namespace | to map ids into one
    capabilities=[
        capabilities.CAP_NET_ADMIN,
        capabilities.CAP_SYS_ADMIN,
        capabilities.CAP_SETUID,
        capabilities.CAP_SETGID,
    ],
    timeout=_TIMEOUT_SECONDS,
)

interior_pctxt = priv_context.PrivContext(
    "novadocker",
    cfg_section="novadocker_interior",
    pypath=f"{__name__}.interior_pctxt",
    # a container's root by its process | any user's process | files of any owner, kept as theirs
    capabilities=[
        capabilities.CAP_SYS_PTRACE,
        capabilities.CAP_KILL,
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
    # files of any owner | the attributes of overlayfs | the caller's open file
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
    # to find a container's mount namespace by its process | to enter it | to mount in it
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
    # files of any owner | kept as they are: owner, mode, device nodes, capabilities of programs |
    # the attributes of overlayfs | the caller's open pipe
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
