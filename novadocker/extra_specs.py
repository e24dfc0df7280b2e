# SPDX-License-Identifier: Apache-2.0
"""The extra specs of the namespace ``docker:``, for settings that Nova has no extra spec for.

One table serves nova-api's check of a new flavor, the driver and the metadata definitions. Imports
nothing of Nova. An image may have the same settings as properties, with ``docker_`` instead of
``docker:``, as far as the operator allows it.
"""

import enum
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from oslo_utils import strutils

PREFIX = "docker:"
IMAGE_PREFIX = "docker_"

# None of these lets a process out of its container.
CAPABILITIES = (
    "AUDIT_CONTROL",
    "BLOCK_SUSPEND",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BROADCAST",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
)

# These concern the user namespace of the server's processes, so without one of its own they would
# concern the host. docs/limits.rst says what each of them permits.
NAMESPACE_CAPABILITIES = ("DAC_READ_SEARCH", "SYS_ADMIN")

_UNLIMITED = -1


class Nesting(enum.StrEnum):
    """The containers that a server may run.

    :cvar NO: none
    :cvar UNPRIVILEGED: containers by the power that the server has in its user namespace
    :cvar HOST: containers without any profile, also if the server has the ids of the host
    """

    NO = "false"
    UNPRIVILEGED = "true"
    HOST = "host"


_SYSCTL_PREFIX = f"{PREFIX}sysctl:"
_MOST_INT = (1 << 31) - 1
_MOST_LONG = (1 << 63) - 1


@dataclass(frozen=True)
class Spec:
    """An extra spec; ``name`` includes the namespace."""

    name: str
    title: str
    description: str

    @property
    def image_property(self) -> str:
        """The name of the image property."""
        return self.name.replace(PREFIX, IMAGE_PREFIX, 1)


@dataclass(frozen=True)
class Number(Spec):
    """An integer."""

    minimum: int
    maximum: int

    def parse(self, text: str) -> int:
        """Return the integer.

        :raises ValueError: the text is not an integer, or the integer is out of range
        """
        # int() also accepts spaces, underscores and digits of any script, so it does not suffice.
        if not re.fullmatch(r"-?[0-9]{1,15}", text):
            raise ValueError(f"{self.name}: {text[:32]!r} is not an integer")
        number = int(text)
        if not self.minimum <= number <= self.maximum:
            raise ValueError(
                f"{self.name}: {number} is not between {self.minimum} and {self.maximum}"
            )
        return number


@dataclass(frozen=True)
class NestingSpec(Spec):
    """``host``, or a boolean in any spelling that ``strutils.bool_from_string`` accepts."""

    def parse(self, text: str) -> Nesting:
        """Return the containers that a server may run.

        :raises ValueError: the text is neither a boolean nor ``host``
        """
        if text == Nesting.HOST:
            return Nesting.HOST
        try:
            nests = strutils.bool_from_string(text, strict=True)
        except ValueError as error:
            raise ValueError(
                f"{self.name}: {text[:32]!r} is neither true, false nor host"
            ) from error
        return Nesting.UNPRIVILEGED if nests else Nesting.NO


@dataclass(frozen=True)
class Choice(Spec):
    """One of a few words."""

    choices: tuple[str, ...]

    def parse(self, text: str) -> str:
        """Return the word.

        :raises ValueError: the text is none of the words
        """
        if text not in self.choices:
            raise ValueError(f"{self.name}: {text[:32]!r} is not {' or '.join(self.choices)}")
        return text


@dataclass(frozen=True)
class ResourceLimit(Spec):
    """A limit of setrlimit(2) for each process: ``SOFT:HARD`` or one number for both."""

    @property
    def resource(self) -> str:
        """The limit's name, such as ``nofile``."""
        return self.name.removeprefix(f"{PREFIX}ulimit_")

    def parse(self, text: str) -> tuple[int, int]:
        """Return the soft and the hard limit; -1 is unlimited.

        :raises ValueError: the text is malformed, or the soft limit exceeds the hard one
        """
        found = re.fullmatch(r"(-1|[0-9]{1,15})(?::(-1|[0-9]{1,15}))?", text)
        if not found:
            raise ValueError(f"{self.name}: {text[:32]!r} is neither SOFT:HARD nor a number")
        soft = int(found[1])
        hard = soft if found[2] is None else int(found[2])
        if hard != _UNLIMITED and (soft == _UNLIMITED or soft > hard):
            raise ValueError(f"{self.name}: the soft limit exceeds the hard limit")
        return soft, hard


@dataclass(frozen=True)
class Words(Spec):
    """A comma-separated list whose items match ``pattern``."""

    pattern: str

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the items.

        :raises ValueError: an item does not match the pattern
        """
        words = tuple(word.strip() for word in text.split(","))
        for word in words:
            if not re.fullmatch(self.pattern, word):
                raise ValueError(f"{self.name}: {word[:32]!r} is not allowed")
        return words


@dataclass(frozen=True)
class Sysctl(Spec):
    """A sysctl of a server's own namespaces: ``count`` integers, separated by spaces."""

    count: int
    minimum: int
    maximum: int

    @property
    def sysctl(self) -> str:
        """The sysctl's name, such as ``net.core.somaxconn``."""
        return self.name.removeprefix(_SYSCTL_PREFIX)

    def parse(self, text: str) -> str:
        """Return the integers, separated by one space each.

        :raises ValueError: the text is malformed, or an integer is out of range
        """
        if not re.fullmatch(rf"[0-9]{{1,19}}(?: +[0-9]{{1,19}}){{{self.count - 1}}}", text):
            what = "an integer" if self.count == 1 else f"{self.count} integers"
            raise ValueError(f"{self.name}: {text[:32]!r} is not {what}")
        for word in text.split():
            if not self.minimum <= int(word) <= self.maximum:
                raise ValueError(
                    f"{self.name}: {word} is not between {self.minimum} and {self.maximum}"
                )
        return " ".join(text.split())


PIDS_LIMIT = Number(
    "docker:pids_limit",
    "Processes",
    "Largest number of processes and threads in a server.",
    # An init system and a login shell need the minimum. The maximum is the kernel's PID_MAX_LIMIT.
    minimum=16,
    maximum=4_194_304,
)
SHM_SIZE = Number(
    "docker:shm_size_mb",
    "Size of /dev/shm",
    "Size of /dev/shm in MiB, by default half of the memory of the flavor. Files in it count as "
    "memory of the server.",
    minimum=1,
    maximum=1_048_576,
)
OOM_SCORE_ADJ = Number(
    "docker:oom_score_adj",
    "Out-of-memory score",
    "oom_score_adj of the processes of a server: the higher, the sooner the kernel kills them when "
    "the host (not the server alone) is out of memory.",
    # With a value below 0 the kernel would kill the host's own processes first.
    minimum=0,
    maximum=1000,
)
ULIMITS = tuple(
    ResourceLimit(
        f"docker:ulimit_{resource}",
        f"Limit {resource}",
        f"{what}, as in setrlimit(2): SOFT:HARD, or one number for both; -1 is unlimited.",
    )
    # Only limits that count per process are here. The others count per user, and a user has
    # processes in many servers.
    for resource, what in (
        ("core", "Largest size of a core dump in bytes"),
        ("data", "Largest size of a process's data in bytes"),
        ("fsize", "Largest size of a file in bytes"),
        ("memlock", "Largest size of locked memory in bytes"),
        ("nofile", "Largest number of open files of a process"),
        ("stack", "Largest size of a thread's stack in bytes"),
    )
)
CAPABILITY_LIST = Words(
    "docker:capabilities",
    "Extra capabilities",
    "Capabilities that a server has in addition to the default ones: comma-separated, without "
    "CAP_, such as NET_ADMIN.",
    pattern="|".join((*CAPABILITIES, *NAMESPACE_CAPABILITIES)),
)
DEVICES = Words(
    "docker:devices",
    "Devices",
    "Paths of devices of the host that a server may use: comma-separated, such as /dev/fuse.",
    pattern=r"/dev(/(?!\.{1,2}(/|$))[A-Za-z0-9_.+-]+)+",
)
NESTING = NestingSpec(
    "docker:nesting",
    "Nested containers",
    "Whether a server may run containers itself: true, on hosts where it has a user namespace, or "
    "host. With host and without a user namespace its root user has the power of the host's root: "
    "only for tenants that may control the host.",
)
USERNS = Choice(
    "docker:userns",
    "User namespace",
    "Whether root of a server is an unprivileged user of the host, in a user namespace of the "
    "server's own (own), or not (host). By default the option [docker] user_namespaces of the host "
    "decides.",
    choices=("host", "own"),
)

DISK = "disk"
RAM = "ram"
SUSPEND = Choice(
    "docker:suspend",
    "Suspend",
    "Where a suspended server has the memory of its processes: on the disk of its host (disk), "
    "which frees the memory, or in RAM (ram). By default the option [docker] suspend of the host "
    "decides.",
    choices=(DISK, RAM),
)

# Each sysctl is one of the server's own IPC or network namespace. None of them makes the server
# forward packets, answer for addresses of others, or listen to routers.
SYSCTLS = tuple(
    Sysctl(
        f"{_SYSCTL_PREFIX}{name}",
        f"Sysctl {name}",
        f"The sysctl {name} of a server: "
        + ("an integer" if count == 1 else f"{count} integers, separated by spaces,")
        + f" from {minimum} to {maximum}.",
        count,
        minimum,
        maximum,
    )
    for name, count, minimum, maximum in (
        ("fs.mqueue.msg_default", 1, 1, 65536),
        ("fs.mqueue.msg_max", 1, 1, 65536),
        ("fs.mqueue.msgsize_default", 1, 128, 1 << 24),
        ("fs.mqueue.msgsize_max", 1, 128, 1 << 24),
        ("fs.mqueue.queues_max", 1, 0, _MOST_INT),
        ("kernel.msgmax", 1, 0, _MOST_INT),
        ("kernel.msgmnb", 1, 0, _MOST_INT),
        ("kernel.msgmni", 1, 0, 32768),
        ("kernel.sem", 4, 0, _MOST_INT),
        ("kernel.shm_rmid_forced", 1, 0, 1),
        ("kernel.shmall", 1, 0, _MOST_LONG),
        ("kernel.shmmax", 1, 0, _MOST_LONG),
        ("kernel.shmmni", 1, 0, 32768),
        ("net.core.somaxconn", 1, 1, 65535),
        ("net.ipv4.ip_local_port_range", 2, 1, 65535),
        ("net.ipv4.ip_nonlocal_bind", 1, 0, 1),
        ("net.ipv4.ip_unprivileged_port_start", 1, 0, 65535),
        ("net.ipv4.ping_group_range", 2, 0, _MOST_INT),
        ("net.ipv4.tcp_abort_on_overflow", 1, 0, 1),
        ("net.ipv4.tcp_ecn", 1, 0, 2),
        ("net.ipv4.tcp_fastopen", 1, 0, 0x607),
        ("net.ipv4.tcp_fin_timeout", 1, 1, 86400),
        ("net.ipv4.tcp_keepalive_intvl", 1, 1, 86400),
        ("net.ipv4.tcp_keepalive_probes", 1, 1, 127),
        ("net.ipv4.tcp_keepalive_time", 1, 1, 86400),
        ("net.ipv4.tcp_max_syn_backlog", 1, 1, 65535),
        ("net.ipv4.tcp_max_tw_buckets", 1, 1, 262144),
        ("net.ipv4.tcp_moderate_rcvbuf", 1, 0, 1),
        ("net.ipv4.tcp_mtu_probing", 1, 0, 2),
        ("net.ipv4.tcp_no_metrics_save", 1, 0, 1),
        ("net.ipv4.tcp_notsent_lowat", 1, 0, _MOST_INT),
        ("net.ipv4.tcp_orphan_retries", 1, 0, 255),
        ("net.ipv4.tcp_retries1", 1, 0, 255),
        ("net.ipv4.tcp_retries2", 1, 0, 255),
        ("net.ipv4.tcp_rmem", 3, 4096, 1 << 26),
        ("net.ipv4.tcp_sack", 1, 0, 1),
        ("net.ipv4.tcp_slow_start_after_idle", 1, 0, 1),
        ("net.ipv4.tcp_syn_retries", 1, 1, 127),
        ("net.ipv4.tcp_synack_retries", 1, 0, 255),
        ("net.ipv4.tcp_syncookies", 1, 0, 2),
        ("net.ipv4.tcp_timestamps", 1, 0, 2),
        ("net.ipv4.tcp_tw_reuse", 1, 0, 2),
        ("net.ipv4.tcp_window_scaling", 1, 0, 1),
        ("net.ipv4.tcp_wmem", 3, 4096, 1 << 26),
        ("net.ipv6.bindv6only", 1, 0, 1),
        ("net.ipv6.ip_nonlocal_bind", 1, 0, 1),
        ("net.unix.max_dgram_qlen", 1, 1, 65536),
    )
)

_ALL: tuple[Number | NestingSpec | Choice | ResourceLimit | Words | Sysctl, ...] = (
    PIDS_LIMIT,
    SHM_SIZE,
    OOM_SCORE_ADJ,
    *ULIMITS,
    CAPABILITY_LIST,
    DEVICES,
    NESTING,
    USERNS,
    SUSPEND,
    *SYSCTLS,
)
ALL = {spec.name: spec for spec in _ALL}


def asked(
    flavor: Mapping[str, str], image: Mapping[str, str], image_may_ask: Collection[str]
) -> dict[str, str]:
    """Return every extra spec of ``docker:`` for an instance; a flavor's overrides an image's.

    :param flavor: all extra specs of the flavor
    :param image: all properties of the image
    :param image_may_ask: names of the extra specs that an image may set
    :raises ValueError: an extra spec is unknown or malformed, or the image may not set it
    """
    found = {}
    properties = {spec.image_property: name for name, spec in ALL.items()}
    for name, value in image.items():
        if name not in properties:
            continue
        if properties[name] not in image_may_ask:
            raise ValueError(f"an image may not set {name} in this cloud")
        found[properties[name]] = value
    found |= {name: value for name, value in flavor.items() if name.startswith(PREFIX)}
    for name, value in found.items():
        if name not in ALL:
            raise ValueError(f"{name} is not an extra spec of the Docker driver")
        ALL[name].parse(value)
    return found
