# SPDX-License-Identifier: Apache-2.0
"""The seccomp profile of servers, in the format of the Docker Engine; pure.

The profiles of engines differ: 20.10 allows io_uring, 23 does not. With this one, a server may make
the same system calls on every engine. Without SYS_ADMIN, it allows nothing that the default profile
of Moby denies (May 2026, https://github.com/moby/profiles, Apache-2.0).

A call that is not listed fails with EPERM. runc lets a call fail with ENOSYS that is newer than
every listed one, and ignores names that its libseccomp lacks. So the lists contain calls of all
architectures.
"""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Protocol

from novadocker.extra_specs import Nesting

_FILES = """
access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3
faccessat faccessat2 fadvise64 fadvise64_64 arm_fadvise64_64 fallocate fchdir fchmod fchmodat
fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs
fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch lchown lchown32 link linkat listmount _llseek lseek
lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe
pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statmount
statx symlink symlinkat sync sync_file_range sync_file_range2 arm_sync_file_range syncfs tee
truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write
writev
"""
_EXTENDED_ATTRIBUTES = """
fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat
llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""
_EVENTS = """
epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
_newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4
"""
_MEMORY = """
brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall
mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
process_mrelease remap_file_pages
"""
_PROCESSES = """
arch_prctl breakpoint cacheflush capget capset execve execveat exit exit_group fork getcpu getegid
getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid
getpriority getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid get_thread_area
gettid getuid getuid32 ioprio_get ioprio_set modify_ldt pidfd_open prctl prlimit64
riscv_flush_icache riscv_hwprobe rseq sched_getaffinity sched_getattr sched_getparam
sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
setrlimit setsid set_thread_area set_tid_address set_tls setuid setuid32 ugetrlimit uretprobe vfork
wait4 waitid waitpid
"""
_SIGNALS_AND_LOCKS = """
futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list kill pause
pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo set_robust_list
sigaltstack sigprocmask sigreturn tgkill tkill
"""
_TIME = """
adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer
time timer_create timer_delete timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times
"""
_COMMUNICATION = """
accept accept4 bind connect getpeername getsockname getsockopt ipc listen mq_getsetattr mq_notify
mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl
msgget msgrcv msgsnd recv recvfrom recvmmsg recvmmsg_time64 recvmsg semctl semget semop semtimedop
semtimedop_time64 send sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown
socketcall socketpair
"""
_SYSTEM = """
getrandom landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp sysinfo uname
"""
_CALLS = (
    _FILES
    + _EXTENDED_ATTRIBUTES
    + _EVENTS
    + _MEMORY
    + _PROCESSES
    + _SIGNALS_AND_LOCKS
    + _TIME
    + _COMMUNICATION
    + _SYSTEM
).split()

_MOUNTS = """
fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr umount
umount2
"""
_BY_CAPABILITY = {
    # In a user namespace the kernel mounts only file systems that it trusts with any content.
    "SYS_ADMIN": f"{_MOUNTS} setdomainname sethostname",
    # In a PID namespace reboot(2) ends the namespace only. The two calls of kexec, which need the
    # same capability, concern the host, so they are not here.
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "SYS_TTY_CONFIG": "vhangup",
}

# systemd makes a mount namespace for a service, and an engine makes namespaces for a container.
_NAMESPACES = "clone clone3 pivot_root setns unshare"
# An engine creates a keyring for each container unless the kernel has no keyrings.
_KEYRINGS = "add_key keyctl request_key"

# linux/personality.h: PER_LINUX, PER_LINUX32, each with and without UNAME26, and the query.
_PERSONALITIES = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# linux/sched.h: CLONE_NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWNS.
_NEW_NAMESPACES = 0x7E020000
# bits/socket.h: the kernel's crypto, and virtual machines' sockets to their host.
_AF_ALG = 38
_AF_VSOCK = 40
# The next power of two above AF_MAX.
_FAMILIES = 64
# ioctl(2) truncates a request to 32 bits, and linux/ioctl.h has the type in these of them.
_IOCTL_TYPE = 0xFF00
# The type in linux/loop.h. LOOP_CLR_FD and LOOP_GET_STATUS64 need no capability.
_LOOP_TYPE = ord("L") << 8
_ENOSYS = 38
# The engine selects the entry of its own machine. Other machines have their one architecture.
_ARCHITECTURES = (
    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
)


class Isolation(Protocol):
    """The part of ``model.Isolation`` that a profile depends on."""

    @property
    def capabilities(self) -> tuple[str, ...]:
        """All capabilities of the server's root, without ``CAP_``; ``ALL`` for nesting."""

    @property
    def devices(self) -> tuple[str, ...]:
        """Paths of the host's devices that the server may use."""

    @property
    def nesting(self) -> Nesting:
        """The containers that the server may run itself."""


def profile(isolation: Isolation) -> str:
    """Return the profile of a server; one with ``Nesting.HOST`` has none."""
    loop = any(PurePosixPath(path).name.startswith("loop") for path in isolation.devices)
    return _profile(isolation.capabilities, loop, isolation.nesting == Nesting.UNPRIVILEGED)


@lru_cache(maxsize=64)
def _profile(capabilities: tuple[str, ...], loop: bool, nests: bool) -> str:
    """Return the profile of a server.

    :param loop: True if the flavor gives the server a loop device
    :param nests: True if the server may run containers itself
    """
    calls = {*_CALLS, *(["ioctl"] if loop else [])}
    for capability, names in _BY_CAPABILITY.items():
        if nests or capability in capabilities:
            calls |= set(names.split())
    rules = [
        _rule(calls),
        *(_rule(["personality"], _equal(value)) for value in _PERSONALITIES),
        *(_rule(["socket"], test) for test in _families()),
        *(_namespaces() if nests or "SYS_ADMIN" in capabilities else _no_namespaces()),
        *([_unknown(_KEYRINGS.split())] if nests else []),
        *([] if loop else [_rule(["ioctl"], test) for test in _other(_IOCTL_TYPE, _LOOP_TYPE)]),
    ]
    return json.dumps(
        {"defaultAction": "SCMP_ACT_ERRNO", "archMap": _ARCHITECTURES, "syscalls": rules},
        separators=(",", ":"),
    )


def _namespaces() -> Iterator[dict[str, Any]]:
    yield _rule(_NAMESPACES.split())


def _no_namespaces() -> Iterator[dict[str, Any]]:
    yield _rule(["clone"], _masked(_NEW_NAMESPACES, 0))
    # Its flags are in memory, which seccomp can't read. With ENOSYS, libraries call clone.
    yield _unknown(["clone3"])


def _unknown(names: list[str]) -> dict[str, Any]:
    """Return a rule that answers as a kernel without these system calls."""
    return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS}


def _rule(names: Iterable[str], *tests: dict[str, Any]) -> dict[str, Any]:
    """Return a rule that allows system calls, perhaps only if their first tests hold."""
    rule: dict[str, Any] = {"names": sorted(names), "action": "SCMP_ACT_ALLOW"}
    return rule | ({"args": list(tests)} if tests else {})


def _equal(value: int) -> dict[str, Any]:
    """Return the test that the first argument is ``value``."""
    return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(mask: int, value: int, index: int = 0) -> dict[str, Any]:
    """Return the test that an argument has ``value`` in the bits of ``mask``."""
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _families() -> Iterator[dict[str, Any]]:
    """Return the tests of which one holds for each address family that a server may use.

    The kernel truncates the argument to 32 bits, so a comparison of 64 bits with ``_AF_ALG`` would
    miss 0x100000026. Calls of socketcall are not compared, because 32-bit programs pass the family
    in memory.
    """
    first = 0
    for denied in (_AF_ALG, _AF_VSOCK, _FAMILIES):
        while first < denied:
            # The largest aligned block of families that ends before the denied one.
            size = first & -first or _FAMILIES
            while first + size > denied:
                size //= 2
            yield _masked(0xFFFFFFFF & -size, first)
            first += size
        first += 1


def _other(mask: int, value: int) -> Iterator[dict[str, Any]]:
    """Return the tests of which one holds if ioctl's request has not ``value`` in ``mask``.

    seccomp has no test for an unequal part, so each test is for one bit that differs.
    """
    for bit in (1 << position for position in range(mask.bit_length())):
        if mask & bit:
            yield _masked(bit, ~value & bit, index=1)
