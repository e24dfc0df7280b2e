# SPDX-License-Identifier: Apache-2.0
"""The programs for device rules, run by an interpreter of their few instructions."""

import struct
import sys

from hypothesis import given
from hypothesis import strategies as st

from novadocker.linux import device_filter
from novadocker.linux.device_filter import Rule
from tests import fuzz

TYPES = {"b": 1, "c": 2}
ACCESSES = {"m": 1, "r": 2, "w": 4}


def allows(rules: list[Rule], kind: str, access: str, major: int, minor: int) -> bool:
    """Return the answer of the compiled program."""
    word = TYPES[kind] | sum(ACCESSES[letter] for letter in access) << 16
    context = {0: word, 4: major, 8: minor}
    code = device_filter.compile_rules(rules)
    program = [struct.unpack("=BBhi", code[at : at + 8]) for at in range(0, len(code), 8)]
    registers = {1: -1}
    at = 0
    while True:
        operation, pair, offset, constant = program[at]
        target, source = pair & 15, pair >> 4
        if sys.byteorder == "big":
            target, source = source, target
        at += 1
        if operation == 0x61:
            registers[target] = context[offset]
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0xB7:
            registers[target] = constant
        elif operation == 0x57:
            registers[target] &= constant
        elif operation == 0x77:
            registers[target] >>= constant
        elif operation == 0x5D:
            at += offset if registers[target] != registers[source] else 0
        elif operation == 0x55:
            at += offset if registers[target] != constant else 0
        else:
            assert operation == 0x95
            return bool(registers[0])


def expected(rules: list[Rule], kind: str, access: str, major: int, minor: int) -> bool:
    for rule in reversed(rules):
        if (
            rule.kind in ("a", kind)
            and set(access) <= set(rule.access)
            and rule.major in (None, major)
            and rule.minor in (None, minor)
        ):
            return rule.allow
    return False


NUMBERS = st.sampled_from([None, 0, 7, 259, 1 << 19])
RULES = st.lists(
    st.builds(
        Rule,
        st.booleans(),
        st.sampled_from("abc"),
        st.sampled_from(["r", "w", "m", "rw", "rm", "rwm"]),
        NUMBERS,
        NUMBERS,
    ),
    max_size=12,
)


@fuzz.examples(100)
@given(
    RULES,
    st.sampled_from("bc"),
    st.sampled_from(["r", "w", "m", "rw"]),
    st.sampled_from([0, 7, 259]),
    st.sampled_from([0, 7, 1 << 19]),
)
def test_the_last_rule_decides(
    rules: list[Rule], kind: str, access: str, major: int, minor: int
) -> None:
    found = allows(rules, kind, access, major, minor)
    assert found is expected(rules, kind, access, major, minor)


def test_a_volume_besides_the_rules_of_a_container() -> None:
    rules = [Rule(False), *device_filter.RUNC_RULES]
    assert allows(rules, "c", "rw", 1, 3)
    assert not allows(rules, "b", "r", 7, 1)
    assert allows([*rules, Rule(True, "b", "r", 7, 1)], "b", "r", 7, 1)
    assert not allows([*rules, Rule(True, "b", "r", 7, 1)], "b", "w", 7, 1)
    assert not allows([*rules, Rule(True, "b", "rw", 7, 1)], "b", "rw", 7, 2)
