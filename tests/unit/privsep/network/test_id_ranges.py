# SPDX-License-Identifier: Apache-2.0
import os
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.privsep.network import id_ranges
from tests import fuzz

POOL = range(1879048192, 1879048192 + 5 * 65536)
FIRSTS = list(POOL[::65536])
UUID = str(uuid.UUID(int=7))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(id_ranges, "FOLDER", tmp_path / "run" / "ids")
    monkeypatch.setattr(id_ranges, "_PROCESSES", tmp_path / "proc")
    (tmp_path / "run").mkdir()
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


@fuzz.examples(100)
@given(st.uuids(), st.sets(st.sampled_from(FIRSTS)))
def test_a_free_range_is_chosen(number: uuid.UUID, taken: set[int]) -> None:
    found = id_ranges.choose(str(number), POOL, taken)
    assert (found is None) == (taken == set(FIRSTS))
    assert found not in taken
    assert found is None or found in FIRSTS
    assert found == id_ranges.choose(str(number), POOL, taken)


@fuzz.examples(100)
@given(st.sets(st.integers(FIRSTS[0] - 70000, FIRSTS[-1] + 140000)))
def test_ranges_with_ids_in_use(ids: set[int]) -> None:
    expected = {
        first for first in FIRSTS if ids.intersection(range(first, first + id_ranges.IDS_OF_SERVER))
    }
    assert id_ranges.ranges_of(POOL, ids) == expected


def test_an_instance_keeps_its_range(folder: Path) -> None:
    first = id_ranges.hold("nova-a", UUID, POOL)
    assert first == FIRSTS[7 % 5]
    # The pool may change.
    assert id_ranges.hold("nova-a", UUID, range(65536, 131072)) == first
    assert id_ranges.held("nova-a") == first
    assert id_ranges.hold("nova-b", UUID, POOL) != first
    id_ranges.release("nova-a")
    id_ranges.release("nova-a")
    assert id_ranges.held("nova-a") is None
    assert id_ranges.hold("nova-c", UUID, POOL) == first


def test_ids_of_a_process_that_hangs_are_not_given_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_ranges, "_users_now", lambda: [0, FIRSTS[2] + 1000, FIRSTS[3]])
    found = {id_ranges.hold(f"nova-{number}", UUID, POOL) for number in range(3)}
    assert found == {FIRSTS[0], FIRSTS[1], FIRSTS[4]}


def test_users_of_processes(folder: Path) -> None:
    for name in ("1", "20", "self"):
        (folder / name).mkdir()
    assert list(id_ranges._users_now()) == [os.getuid()] * 2


def test_a_full_pool(folder: Path) -> None:
    for number in range(5):
        id_ranges.hold(f"nova-{number}", str(uuid.uuid4()), POOL)
    with pytest.raises(OSError, match=r"all 5 ranges of .* user_namespace_ids are in use"):
        id_ranges.hold("nova-6", UUID, POOL)
