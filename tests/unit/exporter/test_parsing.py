# SPDX-License-Identifier: Apache-2.0
"""Counters of the kernel, in files that contain names of a tenant's choice."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.exporter import parsing
from novadocker.state_files import load_averages, port_rates
from tests import fuzz
from tests.unit.exporter.test_exporter import CONNTRACK, NET_DEV, VERSION_1, VERSION_2

# Characters at which str.splitlines() cuts, and the kernel does not.
NO_ENDS = "\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"

PARSERS: Mapping[str, Callable[[str], Any]] = {
    "number": parsing.number,
    "limit": parsing.limit,
    "flat": parsing.flat,
    "chosen": lambda text: parsing.chosen(text, ("inactive_file", "slab_reclaimable")),
    "cores_version_1": lambda text: parsing.cores_version_1(text, text),
    "cores_version_2": parsing.cores_version_2,
    "disks_version_1": lambda text: parsing.disks_version_1(text, text),
    "disks_version_2": parsing.disks_version_2,
    "disk_limits_version_1": lambda text: parsing.disk_limits_version_1([text] * 4),
    "disk_limits_version_2": parsing.disk_limits_version_2,
    "ports": parsing.ports,
    "tracked_connections": parsing.tracked_connections,
    "dropped_connections": parsing.dropped_connections,
    "stalled_seconds": parsing.stalled_seconds,
    "memory_info": parsing.memory_info,
    "threads": parsing.threads,
    "open_files": parsing.open_files,
    "user_keys": parsing.user_keys,
    "load_averages": load_averages.parse,
    "port_rates": port_rates.parse,
}
FILES = [*VERSION_1.values(), *VERSION_2.values(), NET_DEV, CONNTRACK]
WORDS = st.sampled_from([word for file in FILES for word in file.split()]) | st.text(max_size=8)
ENDS = st.sampled_from([" ", "  ", "\n", "\t", ":", "=", *NO_ENDS])
TEXTS = st.lists(WORDS | ENDS, max_size=40).map("".join) | st.sampled_from(FILES)


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@fuzz.examples(60)
@given(text=TEXTS)
def test_no_text_is_an_error(parse: Callable[[str], Any], text: str) -> None:
    with fuzz.bounds():
        parse(text)


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
def test_no_long_number_is_an_error(parse: Callable[[str], Any]) -> None:
    with fuzz.bounds():
        parse("9" * 5000)
        parse(f"a {'9' * 5000}\n")
        # A tenant can make some of the files long.
        parse("9 " * 100_000)
        parse("a 9\n" * 50_000)


@pytest.mark.parametrize("end", list(NO_ENDS), ids=ascii)
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("flat", "oom_kill 7"),
        ("chosen", "inactive_file 7"),
        ("disks_version_1", "254:0 Read 7"),
        ("disks_version_2", "254:0 rbytes=7"),
        ("disk_limits_version_1", "254:0 7"),
        ("disk_limits_version_2", "254:0 rbps=7"),
        ("ports", "eth0: 100 1 2 3 0 0 0 0 200 4 5 6 0 0 0 0"),
        ("stalled_seconds", "some total=7"),
        ("memory_info", "MemTotal: 7 kB"),
        ("port_rates", "eth0 1 2 tap1"),
    ],
)
def test_a_line_ends_at_a_line_feed_alone(name: str, line: str, end: str) -> None:
    parse = PARSERS[name]
    assert parse(f"{line}\n")
    assert parse(f"a{end}{line}\n") != parse(f"{line}\n")


@pytest.mark.parametrize("end", list(NO_ENDS), ids=ascii)
def test_a_cpu_of_the_connection_table_ends_at_a_line_feed_alone(end: str) -> None:
    assert parsing.dropped_connections(f"entries drop\n1 1 {end}2 2\n3 5") == 6
