# SPDX-License-Identifier: Apache-2.0
"""The extra specs of the namespace ``docker:``, for what Nova has no word; without Nova.

One table for all who read them: nova-api's check of a new flavor, the driver, the metadata
definitions. An image may have the same as properties, with ``docker_`` for ``docker:``, as far as
the operator allows it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from oslo_utils import strutils

PREFIX = "docker:"
IMAGE_PREFIX = "docker_"

# what adds nothing that leads out of a container; SYS_ADMIN comes with nesting only
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

_UNLIMITED = -1


@dataclass(frozen=True)
class Spec:
    """An extra spec; ``name`` is with its namespace."""

    name: str
    title: str
    description: str

    @property
    def image_property(self) -> str:
        """The name as a property of an image."""
        return self.name.replace(PREFIX, IMAGE_PREFIX, 1)


@dataclass(frozen=True)
class Number(Spec):
    """A whole number."""

    minimum: int
    maximum: int

    def parse(self, text: str) -> int:
        """Return the number; ValueError where it is none or out of range."""
        # int() alone would take spaces, underscores and digits of any script
        if not re.fullmatch(r"-?[0-9]{1,15}", text):
            raise ValueError(f"{self.name}: {text[:32]!r} is no whole number")
        number = int(text)
        if not self.minimum <= number <= self.maximum:
            raise ValueError(f"{self.name}: {number} is not {self.minimum} to {self.maximum}")
        return number


@dataclass(frozen=True)
class Switch(Spec):
    """``true`` or ``false``, in any of the spellings that Nova knows."""

    def parse(self, text: str) -> bool:
        """Return the truth; ValueError where it is another word."""
        try:
            return bool(strutils.bool_from_string(text, strict=True))
        except ValueError as error:
            raise ValueError(f"{self.name}: {text[:32]!r} is not true or false") from error


@dataclass(frozen=True)
class ResourceLimit(Spec):
    """A limit of setrlimit(2) for each process: ``SOFT:HARD`` or one number for both."""

    @property
    def resource(self) -> str:
        """The limit's name, such as ``nofile``."""
        return self.name.removeprefix(f"{PREFIX}ulimit_")

    def parse(self, text: str) -> tuple[int, int]:
        """Return soft and hard limit, -1 for none; ValueError where it is not well-formed."""
        found = re.fullmatch(r"(-1|[0-9]{1,15})(?::(-1|[0-9]{1,15}))?", text)
        if not found:
            raise ValueError(f"{self.name}: {text[:32]!r} is not SOFT:HARD or a number")
        soft = int(found[1])
        hard = soft if found[2] is None else int(found[2])
        if hard != _UNLIMITED and (soft == _UNLIMITED or soft > hard):
            raise ValueError(f"{self.name}: the soft limit is above the hard one")
        return soft, hard


@dataclass(frozen=True)
class Words(Spec):
    """Words with commas between them, each of ``pattern``."""

    pattern: str

    def parse(self, text: str) -> tuple[str, ...]:
        """Return the words; ValueError where one of them is not allowed."""
        words = tuple(word.strip() for word in text.split(","))
        for word in words:
            if not re.fullmatch(self.pattern, word):
                raise ValueError(f"{self.name}: {word[:32]!r} is not allowed")
        return words


PIDS_LIMIT = Number(
    "docker:pids_limit",
    "Processes",
    "Largest number of processes and threads in a server.",
    # an init system and a login shell | the kernel's largest pid_max
    minimum=16,
    maximum=4_194_304,
)
SHM_SIZE = Number(
    "docker:shm_size_mb",
    "Size of /dev/shm",
    "Size of /dev/shm in MiB. What is stored there counts as memory of the server.",
    minimum=1,
    maximum=1_048_576,
)
OOM_SCORE_ADJ = Number(
    "docker:oom_score_adj",
    "Out-of-memory score",
    "How much sooner than others the processes of a server are killed when the host, not the "
    "server alone, is out of memory.",
    # below 0 a tenant's process would outlive the host's own
    minimum=0,
    maximum=1000,
)
ULIMITS = tuple(
    ResourceLimit(
        f"docker:ulimit_{resource}",
        f"Limit {resource}",
        f"{what}, as in setrlimit(2): SOFT:HARD, or one number for both; -1 is unlimited.",
    )
    # those that count for a process; others count a user's processes in all servers together
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
    "Capabilities that a server has beyond the usual ones, with commas between them and without "
    "CAP_, such as NET_ADMIN.",
    pattern="|".join(CAPABILITIES),
)
DEVICES = Words(
    "docker:devices",
    "Devices",
    "Paths of the host's devices that a server may use, with commas between them, such as "
    "/dev/fuse.",
    pattern=r"/dev(/(?!\.{1,2}(/|$))[A-Za-z0-9_.+-]+)+",
)
NESTING = Switch(
    "docker:nesting",
    "Nested containers",
    "Whether a server may run containers itself. Without user namespaces (userns-remap) its root "
    "then is as mighty as the host's: for tenants that are trusted with the host.",
)

_ALL: tuple[Number | Switch | ResourceLimit | Words, ...] = (
    PIDS_LIMIT,
    SHM_SIZE,
    OOM_SCORE_ADJ,
    *ULIMITS,
    CAPABILITY_LIST,
    DEVICES,
    NESTING,
)
ALL = {spec.name: spec for spec in _ALL}


def asked(
    flavor: Mapping[str, str], image: Mapping[str, str], image_may_ask: Collection[str]
) -> dict[str, str]:
    """Return every extra spec of ours that holds for a server; the flavor's word goes first.

    :param flavor: all extra specs of the flavor
    :param image: all properties of the image
    :param image_may_ask: names of those extra specs that an image may set
    :raises ValueError: one is unknown, malformed, or not the image's to set
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
            raise ValueError(f"{name} is no extra spec of the Docker driver")
        ALL[name].parse(value)
    return found
