# SPDX-License-Identifier: Apache-2.0
"""The superblock of ext2, ext3 and ext4, by fs/ext4/ext4.h; pure."""

import struct
from dataclasses import dataclass
from uuid import UUID

OFFSET = 1024
"""The place of the superblock on the device."""

SIZE = 1024

_MAGIC = 0xEF53
_HAS_JOURNAL = 0x0004
_IS_JOURNAL, _64BIT = 0x0008, 0x0080
_LARGEST_BLOCK_SHIFT = 6


@dataclass(frozen=True)
class Superblock:
    """What the superblock of a file system says.

    :ivar uuid: of the file system, in the canonical form
    :ivar size: of the file system in bytes
    :ivar external_journal: True if the journal is on another device, or if this is such a journal
    """

    label: bytes
    uuid: str
    size: int
    block_size: int
    external_journal: bool


def parse(content: bytes) -> Superblock | None:
    """Return the superblock in the bytes at ``OFFSET``; None if they are no superblock."""

    def number(form: str, offset: int) -> int:
        return int(struct.unpack_from(f"<{form}", content, offset)[0])

    if len(content) < SIZE or number("H", 0x38) != _MAGIC:
        return None
    shift = number("I", 0x18)
    if shift > _LARGEST_BLOCK_SHIFT:
        return None
    compatible, incompatible = number("I", 0x5C), number("I", 0x60)
    blocks = number("I", 0x04)
    if incompatible & _64BIT:
        blocks |= number("I", 0x150) << 32
    block_size = 1024 << shift
    has_journal = bool(compatible & _HAS_JOURNAL)
    journal_inode, journal_device = number("I", 0xE0), number("I", 0xE4)
    return Superblock(
        label=content[0x78:0x88].rstrip(b"\0"),
        uuid=str(UUID(bytes=content[0x68:0x78])),
        size=blocks * block_size,
        block_size=block_size,
        external_journal=bool(incompatible & _IS_JOURNAL)
        or (has_journal and (journal_inode == 0 or journal_device != 0)),
    )
