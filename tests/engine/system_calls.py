# SPDX-License-Identifier: Apache-2.0
"""The numbers of this machine's system calls."""

import ctypes


def native_calls() -> dict[str, int]:
    """Return the numbers of this machine's system calls by name, as libseccomp knows them."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    found = {}
    for number in range(1024):
        # 0 means the machine's own architecture.
        if name := library.seccomp_syscall_resolve_num_arch(0, number):
            found[ctypes.string_at(name).decode()] = number
    return found
