# SPDX-License-Identifier: Apache-2.0
"""The program of a control group of version 2 that decides which devices its processes may open.

The kernel has no file for that (Documentation/admin-guide/cgroup-v2.rst, "Device controller"):
runc translates the rules of ``config.json`` to a BPF program of the type
``BPF_PROG_TYPE_CGROUP_DEVICE``. All programs of a group must allow an access, so an access that
runc's program denies needs another program in its place.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from novadocker.linux import libc

# linux/bpf.h
_PROG_LOAD, _PROG_ATTACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO, _PROG_QUERY = 5, 8, 13, 15, 16
_PROG_TYPE_CGROUP_DEVICE, _CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4
_TYPES = {"b": 1, "c": 2}
_ACCESSES = {"m": 1, "r": 2, "w": 4}
_ANY_ACCESS = 7
_LOAD_WORD, _MOVE, _MOVE_CONSTANT, _AND, _SHIFT_RIGHT = 0x61, 0xBF, 0xB7, 0x57, 0x77
_JUMP_UNLESS_EQUAL, _JUMP_UNLESS_CONSTANT, _EXIT = 0x5D, 0x55, 0x95
_JUMPS = (_JUMP_UNLESS_EQUAL, _JUMP_UNLESS_CONSTANT)
# struct bpf_cgroup_dev_ctx: access_type, major, minor.
_ACCESS_TYPE, _MAJOR, _MINOR = 0, 4, 8
_MOST_PROGRAMS = 64
# struct bpf_prog_info
_INFO_SIZE, _NAME = 80, slice(64, 80)
_SYSTEMD = b"sd_"


@dataclass(frozen=True)
class Rule:
    """A rule for devices, as in the runtime specification of OCI.

    :ivar kind: ``b``, ``c``, or ``a`` for both
    :ivar access: letters of ``rwm``
    :ivar major: None for all
    :ivar minor: None for all
    """

    allow: bool
    kind: str = "a"
    access: str = "rwm"
    major: int | None = None
    minor: int | None = None


# runc allows these besides the rules of the configuration (libcontainer/specconv, AllowedDevices).
# runc 1.2.0 to 1.2.3 lack the last one, /dev/net/tun. It is here for all, because a server that
# opened it before must open it after, and it is of no use without CAP_NET_ADMIN.
RUNC_RULES = (
    Rule(True, "c", "m"),
    Rule(True, "b", "m"),
    *(Rule(True, "c", "rwm", 1, minor) for minor in (3, 5, 7, 8, 9)),
    Rule(True, "c", "rwm", 5, 0),
    Rule(True, "c", "rwm", 136),
    Rule(True, "c", "rwm", 5, 2),
    Rule(True, "c", "rwm", 10, 200),
)


def compile_rules(rules: Sequence[Rule]) -> bytes:
    """Return the instructions of the program for rules; pure.

    The last rule that covers an access decides. An access without a rule is denied.
    """
    # Registers: 2 the type, 3 the access, 4 the major number, 5 the minor number.
    code = [
        _instruction(_LOAD_WORD, 2, 1, _ACCESS_TYPE),
        _instruction(_MOVE, 3, 2),
        _instruction(_AND, 2, constant=0xFFFF),
        _instruction(_SHIFT_RIGHT, 3, constant=16),
        _instruction(_LOAD_WORD, 4, 1, _MAJOR),
        _instruction(_LOAD_WORD, 5, 1, _MINOR),
    ]
    for rule in reversed(rules):
        tests = _tests(rule)
        # A test that fails jumps behind the two instructions of the rule's answer.
        code += [
            _instruction(operation, target, source, len(tests) + 1 - number, constant)
            if operation in _JUMPS
            else _instruction(operation, target, source, 0, constant)
            for number, (operation, target, source, constant) in enumerate(tests)
        ]
        code += [_instruction(_MOVE_CONSTANT, 0, constant=int(rule.allow)), _instruction(_EXIT)]
        if not tests:
            # The kernel refuses a program with instructions that are never reached.
            return b"".join(code)
    return b"".join([*code, _instruction(_MOVE_CONSTANT, 0), _instruction(_EXIT)])


def _tests(rule: Rule) -> list[tuple[int, int, int, int]]:
    """Return the operation, target, source and constant of each instruction that tests a rule."""
    tests = []
    if rule.kind != "a":
        tests.append((_JUMP_UNLESS_CONSTANT, 2, 0, _TYPES[rule.kind]))
    access = sum(_ACCESSES[letter] for letter in set(rule.access))
    if access != _ANY_ACCESS:
        # The rule must cover the whole access.
        tests += [(_MOVE, 1, 3, 0), (_AND, 1, 0, access), (_JUMP_UNLESS_EQUAL, 1, 3, 0)]
    for register, number in ((4, rule.major), (5, rule.minor)):
        if number is not None:
            tests.append((_JUMP_UNLESS_CONSTANT, register, 0, number))
    return tests


def _instruction(
    code: int, target: int = 0, source: int = 0, offset: int = 0, constant: int = 0
) -> bytes:
    registers = target | source << 4 if sys.byteorder == "little" else target << 4 | source
    return struct.pack("=BBhi", code, registers, offset, constant)


def replace_program(group: Path, rules: Sequence[Rule]) -> None:
    """Replace runc's program of a control group by one for other rules.

    systemd has a program of its own in groups that it manages, which stays. Does nothing if runc
    has none there, because then every access is allowed.

    :raises OSError: the kernel refuses
    """
    directory = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        programs, flags = _query(directory)
        for number in programs:
            old = _call(_PROG_GET_FD_BY_ID, struct.pack("=3I", number, 0, 0))
            try:
                if not _name(old).startswith(_SYSTEMD):
                    _attach(directory, flags, old, compile_rules(rules))
            finally:
                os.close(old)
    finally:
        os.close(directory)


def _attach(directory: int, flags: int, old: int, code: bytes) -> None:
    program = _load(code)
    try:
        replaced = (flags | _REPLACE, old) if flags & _ALLOW_MULTI else (flags, 0)
        _call(_PROG_ATTACH, struct.pack("=5I", directory, program, _CGROUP_DEVICE, *replaced))
    finally:
        os.close(program)


def _load(code: bytes) -> int:
    text, license_ = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"Apache-2.0")
    return _call(
        _PROG_LOAD,
        struct.pack(
            "=2I2Q2IQ2I16s",
            *(_PROG_TYPE_CGROUP_DEVICE, len(code) // 8),
            *(ctypes.addressof(text), ctypes.addressof(license_)),
            *(0, 0, 0, 0, 0, b"novadocker"),
        ),
    )


def _query(directory: int) -> tuple[list[int], int]:
    """Return the numbers of a group's own programs for devices, and how they are attached."""
    numbers = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    attributes = bytearray(
        struct.pack(
            "=4IQI", directory, _CGROUP_DEVICE, 0, 0, ctypes.addressof(numbers), _MOST_PROGRAMS
        )
    )
    libc.bpf(_PROG_QUERY, attributes)
    *_, flags, _, count = struct.unpack("=4IQI", attributes)
    return list(numbers[:count]), flags


def _name(program: int) -> bytes:
    info = ctypes.create_string_buffer(_INFO_SIZE)
    _call(_OBJ_GET_INFO, struct.pack("=2IQ", program, _INFO_SIZE, ctypes.addressof(info)))
    return info.raw[_NAME].rstrip(b"\0")


def _call(command: int, attributes: bytes) -> int:
    return libc.bpf(command, bytearray(attributes))
