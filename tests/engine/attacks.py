# SPDX-License-Identifier: Apache-2.0
"""Attempts of a server's root to leave its server, and a Perl program that makes them.

Each attempt is a Perl expression whose value is 0 for a success, or the error number. The program
runs each attempt in a process of its own, so that an attempt that succeeds does not change the next
one. ``call`` makes a system call, ``to_open``, ``to_read`` and ``to_write`` access a file, and
``made`` makes a device node and opens it.
"""

import errno
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.engine.system_calls import native_calls


@dataclass(frozen=True)
class Attempt:
    """An attempt to do what a server's root must not do.

    :ivar subject: the kind of the attempt, as docs/security.rst names it
    :ivar answers: the names of the errors that refuse it; a kernel answers ENOENT, ENODEV or ENOSYS
        if it lacks what the attempt is about
    :ivar program: a Perl expression
    """

    subject: str
    name: str
    answers: frozenset[str]
    program: str


def _attempts(subject: str, answers: str, **programs: str) -> tuple[Attempt, ...]:
    names = frozenset(answers.split())
    return tuple(Attempt(subject, name, names, program) for name, program in programs.items())


def _mount(source: str, kind: str, options: str = "") -> str:
    return f"call('mount', '{source}', '/tmp/attack', '{kind}', 0, '{options}')"


# The kernel refuses a write to a file of the host's root, or the file system is read-only.
_FILE = "EACCES EROFS ENOENT EPERM"
_CALL = "EPERM"

ATTEMPTS = (
    *_attempts(
        "mounts",
        # The profile answers EPERM. Without it, the kernel also finds that it lacks a file system.
        "EPERM EINVAL ENODEV",
        mount_disk=_mount("/tmp/disk", "ext4"),
        mount_devtmpfs=_mount("none", "devtmpfs"),
        mount_debugfs=_mount("none", "debugfs"),
        mount_tracefs=_mount("none", "tracefs"),
        mount_securityfs=_mount("none", "securityfs"),
        mount_configfs=_mount("none", "configfs"),
        mount_pstore=_mount("none", "pstore"),
        mount_nfs=_mount("192.0.2.1:/", "nfs", "addr=192.0.2.1"),
        mount_9p=_mount("none", "9p"),
        mount_squashfs=_mount("/bin/busybox", "squashfs"),
        mount_a_disk_by_the_new_calls=(
            "($f = syscall($nr{fsopen}, $ext4 = 'ext4', 0)) == -1 ? $!+0 : "
            "call('fsconfig', $f, 1, $key = 'source', $value = '/tmp/disk', 0) "
            "|| call('fsconfig', $f, 6, 0, 0, 0)"
        ),
    ),
    *_attempts(
        "devices",
        _CALL,
        make_a_disk="made(S_IFBLK, 254, 0)",
        make_memory="made(S_IFCHR, 1, 1)",
        make_ports="made(S_IFCHR, 1, 4)",
        make_the_kernels_log="made(S_IFCHR, 1, 11)",
        make_a_loop_device="made(S_IFBLK, 7, 0)",
        make_loop_control="made(S_IFCHR, 10, 237)",
        make_device_mapper="made(S_IFCHR, 10, 236)",
        make_fuse="made(S_IFCHR, 10, 229)",
        make_kvm="made(S_IFCHR, 10, 232)",
        make_a_tap_control="made(S_IFCHR, 10, 200)",
        make_a_terminal_of_the_host="made(S_IFCHR, 4, 1)",
        change_io_ports="call('iopl', 3)",
        # LOOP_CLR_FD, which needs no capability
        detach_a_loop_device="($e = call('ioctl', -1, 0x4C01, 0)) == EBADF ? 0 : $e",
    ),
    *_attempts(
        "devices",
        "ENOENT",
        open_memory="to_open('/dev/mem')",
        open_the_kernels_log="to_open('/dev/kmsg')",
        open_loop_control="to_open('/dev/loop-control')",
    ),
    *_attempts(
        "sysctls",
        _FILE,
        set_panic="to_write('/proc/sys/kernel/panic', '1')",
        set_sysrq="to_write('/proc/sys/kernel/sysrq', '1')",
        set_swappiness="to_write('/proc/sys/vm/swappiness', '1')",
        set_overcommit="to_write('/proc/sys/vm/overcommit_memory', '1')",
        set_file_max="to_write('/proc/sys/fs/file-max', '9')",
        set_threads_max="to_write('/proc/sys/kernel/threads-max', '99')",
        drop_caches="to_write('/proc/sys/vm/drop_caches', '1')",
        allow_hard_links="to_write('/proc/sys/fs/protected_hardlinks', '0')",
        show_kernel_addresses="to_write('/proc/sys/kernel/kptr_restrict', '0')",
        allow_bpf="to_write('/proc/sys/kernel/unprivileged_bpf_disabled', '0')",
    ),
    *_attempts(
        "programs that the kernel starts",
        _FILE,
        set_core_pattern="to_write('/proc/sys/kernel/core_pattern', '|/tmp/x')",
        set_modprobe="to_write('/proc/sys/kernel/modprobe', '/tmp/x')",
        set_hotplug="to_write('/proc/sys/kernel/hotplug', '/tmp/x')",
        set_uevent_helper="to_write('/sys/kernel/uevent_helper', '/tmp/x')",
        set_poweroff_command="to_write('/proc/sys/kernel/poweroff_cmd', '/tmp/x')",
        set_usermodehelper="to_write('/proc/sys/kernel/usermodehelper/bset', '1 1')",
        register_a_binary_format="to_write('/proc/sys/fs/binfmt_misc/register', ':x:M::x::/x:')",
    ),
    *_attempts(
        "/proc and /sys",
        _FILE,
        press_sysrq="to_write('/proc/sysrq-trigger', 'h')",
        read_kernel_memory="to_read('/proc/kcore')",
        protect_from_the_oom_killer="to_write('/proc/self/oom_score_adj', '-500')",
        map_more_ids="to_write('/proc/self/uid_map', '0 0 1')",
        suspend_the_host="to_write('/sys/power/state', 'mem')",
        take_a_cpu_off="to_write('/sys/devices/system/cpu/cpu1/online', '0')",
        change_a_disk="to_write('/sys/block/vda/queue/read_ahead_kb', '1')",
        change_memory="to_write('/sys/kernel/mm/transparent_hugepage/enabled', 'never')",
        trigger_a_uevent="to_write('/sys/block/vda/uevent', 'add')",
        trigger_all_uevents="to_write('/sys/devices/virtual/mem/null/uevent', 'add')",
        bind_a_driver="to_write('/sys/bus/pci/drivers_probe', '0000:00:00.0')",
    ),
    *_attempts(
        "keyrings",
        "EPERM ENOSYS",
        read_a_keyring="call('keyctl', 0, -3, 0)",
        read_the_keyring_of_the_user="call('keyctl', 11, -4, 0, 0)",
        add_a_key="call('add_key', $type = 'user', $name = 'x', $text = 'x', 1, -3)",
        request_a_key="call('request_key', $type = 'user', $name = 'x', $text = 'x', -3)",
    ),
    *_attempts(
        "namespaces",
        "EPERM",
        # NS_GET_PARENT
        enter_the_parent_user_namespace=(
            "($p = ns_of('user', 0xB702)) < 0 ? $!+0 : call('setns', $p, 0)"
        ),
        enter_the_parent_process_namespace=(
            "($p = ns_of('pid', 0xB702)) < 0 ? $!+0 : call('setns', $p, 0)"
        ),
    ),
    *_attempts(
        "namespaces",
        # With CAP_SYS_ADMIN, a process can't enter the user namespace in which it is.
        "EPERM EINVAL",
        # NS_GET_USERNS
        enter_the_owner_of_the_network=(
            "($p = ns_of('net', 0xB701)) < 0 ? $!+0 : call('setns', $p, 0)"
        ),
    ),
    *_attempts(
        "processes of others",
        "ESRCH ENOENT EPERM",
        enter_a_process_of_the_host=(
            "($p = pidfd($ENV{HOST_PID})) < 0 ? $!+0 : call('setns', $p, 0x20000)"
        ),
        take_a_file_of_the_host=(
            "($p = pidfd($ENV{HOST_PID})) < 0 ? $!+0 : call('pidfd_getfd', $p, 0, 0)"
        ),
        trace_a_process_of_the_host="call('ptrace', 16, $ENV{HOST_PID} + 0, 0, 0)",
        signal_a_process_of_the_host="call('kill', $ENV{HOST_PID} + 0, 0)",
        read_a_process_of_the_host='to_read("/proc/$ENV{HOST_PID}/environ")',
        read_memory_of_the_host=(
            "call('process_vm_readv', $ENV{HOST_PID} + 0, $i = pack('PQ', $b = ' ' x 8, 8), 1, "
            "$j = pack('QQ', 0x400000, 8), 1, 0)"
        ),
        limit_a_process_of_the_host="call('prlimit64', $ENV{HOST_PID} + 0, 7, 0, $l = ' ' x 16)",
    ),
    *_attempts(
        "processes of others",
        "EPERM EACCES",
        become_root_as_a_user="as_user(1000, sub { call('setuid', 0) })",
        trace_root_as_a_user="as_user(1000, sub { call('ptrace', 16, 1, 0, 0) })",
        raise_the_priority="call('setpriority', 0, 0, -5)",
        run_in_real_time="call('sched_setscheduler', 0, 1, $p = pack('i', 50))",
    ),
    *_attempts(
        "control groups",
        _FILE,
        raise_the_limit_of_memory=(
            "to_write(limit('memory/memory.limit_in_bytes', 'memory.max'), '-1')"
        ),
        raise_the_limit_of_processes="to_write(limit('pids/pids.max', 'pids.max'), 'max')",
        raise_the_share_of_cpus="to_write(limit('cpu/cpu.shares', 'cpu.weight'), '10000')",
        allow_devices="to_write(limit('devices/devices.allow', 'none'), 'a')",
        set_a_release_agent="to_write(limit('memory/release_agent', 'none'), '/tmp/x')",
        leave_the_control_group="to_write(limit('memory/../cgroup.procs', '../cgroup.procs'), 0)",
    ),
    *_attempts(
        "control groups",
        "EPERM EINVAL EACCES ENOENT EBUSY",
        mount_a_hierarchy_with_a_release_agent=_mount(
            "none", "cgroup", "none,name=attack,release_agent=/tmp/x"
        ),
        mount_a_hierarchy_and_set_its_release_agent=(
            f"{_mount('none', 'cgroup', 'memory')} "
            "|| to_write('/tmp/attack/release_agent', '/tmp/x')"
        ),
        mount_a_hierarchy_and_raise_its_limit=(
            f"{_mount('none', 'cgroup', 'memory')} "
            "|| to_write('/tmp/attack/memory.limit_in_bytes', '-1')"
        ),
        mount_the_unified_hierarchy_and_raise_its_limit=(
            f"{_mount('none', 'cgroup2')} || to_write('/tmp/attack/memory.max', 'max')"
        ),
    ),
    *_attempts(
        "file handles",
        _CALL,
        # FILEID_INO32_GEN and inode 2, the root of ext4
        open_the_root_of_a_disk=(
            "call('open_by_handle_at', opened('/etc/hosts'), $h = pack('IiII', 8, 1, 2, 0), 0)"
        ),
        # FD_PIDFS_ROOT and FD_NSFS_ROOT, which need no capability
        open_a_process="call('open_by_handle_at', -10002, $h = pack('IiQ', 8, 254, 1), 0)",
        open_a_namespace=(
            "call('open_by_handle_at', -10003, $h = pack('IiQII', 16, 241, 1, 0, 0), 0)"
        ),
    ),
    *_attempts(
        "calls of the kernel",
        _CALL,
        set_up_io_uring="call('io_uring_setup', 1, $p = \"\\0\" x 120)",
        handle_page_faults="call('userfaultfd', 0)",
        load_a_bpf_program="call('bpf', 5, $a = \"\\0\" x 128, 128)",
        create_a_bpf_map="call('bpf', 0, $a = pack('I8', 2, 4, 4, 1) . \"\\0\" x 96, 128)",
        measure_the_kernel="call('perf_event_open', $a = \"\\0\" x 128, -1, 0, -1, 0)",
        read_the_kernels_log="call('syslog', 3, $b = ' ' x 64, 64)",
        load_a_kernel="call('kexec_load', 0, 0, 0, 0)",
        load_a_kernel_from_a_file="call('kexec_file_load', -1, -1, 0, 0, 0)",
        load_a_module="call('init_module', $m = ' ' x 64, 64, $p = '')",
        load_a_module_from_a_file="call('finit_module', opened('/bin/busybox'), $p = '', 0)",
        unload_a_module="call('delete_module', $m = 'none', 0)",
        set_the_clock="call('clock_settime', 0, $t = pack('qq', 1, 0))",
        # ADJ_OFFSET
        adjust_the_clock="call('adjtimex', $t = pack('I', 1) . \"\\0\" x 204)",
        swap_to_a_file="call('swapon', $f = '/bin/busybox', 0)",
        account_processes="call('acct', $f = '/tmp/acct')",
        listen_to_all_files="call('fanotify_init', 0, 0)",
        change_a_quota="call('quotactl', 0x80000200, $f = '/dev/vda', 0, 0)",
        hang_up_a_terminal="call('vhangup')",
        # FS_IMMUTABLE_FL, which would outlive the server
        make_a_file_immutable="flagged('/tmp/flagged', 0x10)",
        use_the_kernels_crypto="call('socket', 38, 5, 0)",
        talk_to_the_hypervisor="call('socket', 40, 1, 0)",
        listen_to_the_audit="audited()",
    ),
    *_attempts(
        "calls of the kernel",
        # The process namespace has no Ctrl-Alt-Del.
        "EINVAL EPERM",
        ignore_ctrl_alt_del="call('reboot', 0xFEE1DEAD, 0x28121969, 0, 0)",
    ),
)

_PROGRAM = r"""
my %nr = (NUMBERS);
sub EBADF { 9 } sub EACCES { 13 } sub ENOENT { 2 } sub S_IFBLK { 060000 } sub S_IFCHR { 020000 }
sub O_RDONLY { 0 } sub O_WRONLY { 1 } sub O_RDWR { 2 } sub O_CREAT { 0100 }
sub call { my ($name, @rest) = @_; syscall($nr{$name}, @rest) == -1 ? $! + 0 : 0 }
sub to_open { sysopen(my $file, $_[0], O_RDONLY) ? 0 : $! + 0 }
sub opened { sysopen($held, $_[0], O_RDONLY) ? fileno($held) : -1 }
sub content { open(my $file, '<', $_[0]) or return ''; join('', <$file>) }
sub to_read {
    sysopen(my $file, $_[0], O_RDONLY) or return $! + 0;
    my $read = sysread($file, my $bytes, 64);
    defined $read ? ($read ? 0 : ENOENT) : $! + 0
}
sub to_write {
    sysopen(my $file, $_[0], O_WRONLY) or return $! + 0;
    defined syswrite($file, $_[1]) ? 0 : $! + 0
}
sub limit { my ($first, $second) = map "/sys/fs/cgroup/$_", @_; -e $first ? $first : $second }
sub made {
    my ($kind, $major, $minor) = @_; my $path = "/tmp/node$$";
    my $error = call('mknodat', -100, $path, $kind | 0666, $major << 8 | $minor) || to_open($path);
    unlink $path; $error
}
sub pidfd { syscall($nr{pidfd_open}, $_[0] + 0, 0) }
sub ns_of { syscall($nr{ioctl}, opened("/proc/self/ns/$_[0]"), $_[1], 0) }
sub as_user { my ($id, $attempt) = @_; $) = "$id $id"; $> = $id; $< = $id;
    call('setresuid', $id, $id, $id); $attempt->() }
sub flagged {
    sysopen(my $file, $_[0], O_RDWR | O_CREAT) or return $! + 0;
    my $flags = pack('l', $_[1]);
    # FS_IOC_SETFLAGS
    syscall($nr{ioctl}, fileno($file), 0x40086602, $flags) == -1 ? $! + 0 : 0
}
sub audited {
    # NETLINK_AUDIT, whose group 1 has the kernel's messages
    my $socket = syscall($nr{socket}, 16, 3, 9);
    $socket == -1 ? $! + 0 : call('bind', $socket, $a = pack('SSII', 16, 0, 0, 1), 12)
}
my %attempts = (ATTEMPTS);
mkdir '/tmp/attack';
for my $name (sort keys %attempts) {
    my $child = open(my $answer, '-|') // die;
    if (!$child) { my $error = $attempts{$name}->(); syswrite(STDOUT, $error); exit }
    print "$name ", <$answer> // '', "\n"; close $answer;
}
"""


def program(attempts: Iterable[Attempt]) -> str:
    """Return the Perl program that makes attempts and prints a line with the answer to each."""
    numbers = ", ".join(f"{json.dumps(name)}, {number}" for name, number in native_calls().items())
    made = ", ".join(f"{attempt.name} => sub {{ {attempt.program} }}" for attempt in attempts)
    return _PROGRAM.replace("NUMBERS", numbers).replace("ATTEMPTS", made)


def answers(run: Callable[..., tuple[int, str]], host_pid: int) -> dict[str, str]:
    """Make the attempts inside a container.

    :param run: a function that runs a command inside and returns its exit status and its output
    :param host_pid: a process of the host, outside the container
    :return: the answers by the attempts' names, as ``errno`` names them; ``done`` for a success
    """
    code, output = run("env", f"HOST_PID={host_pid}", "perl", "-e", program(ATTEMPTS))
    assert code == 0, output
    found = {}
    for line in output.splitlines():
        name, number = line.split(" ")
        found[name] = errno.errorcode[int(number)] if int(number) else "done"
    return found


def wrong_answers(run: Callable[..., tuple[int, str]], host_pid: int) -> dict[str, str | None]:
    """Make the attempts inside a container; return the answers that refuse nothing."""
    found = answers(run, host_pid)
    return {
        attempt.name: found.get(attempt.name)
        for attempt in ATTEMPTS
        if found.get(attempt.name) not in attempt.answers
    }
