# SPDX-License-Identifier: Apache-2.0
"""The text that Nova carries from the source to the destination of a resize."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker import exception
from novadocker.virt.docker.migration.disk_info import SAME_HOST, Move, read_move
from tests import fuzz

MOVE = Move("0" * 32, f"sha256:{'1' * 64}", ["/data"], drive=True)
FIELDS = json.loads(MOVE.to_text())

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*FIELDS, "x"]), inner, max_size=7),
    ),
    max_leaves=12,
)


def test_what_one_host_writes_the_other_reads() -> None:
    assert read_move(MOVE.to_text()) == MOVE
    assert read_move(SAME_HOST) is None


def test_the_text_is_the_one_of_earlier_releases() -> None:
    """Hosts with another release of the driver, and backups, have it."""
    assert {
        "token": "0" * 32,
        "image_id": f"sha256:{'1' * 64}",
        "volumes": ["/data"],
        "drive": True,
        "version": 1,
        "same_host": False,
    } == FIELDS
    assert json.loads(SAME_HOST) == {"version": 1, "same_host": True}


def test_another_version() -> None:
    text = MOVE.to_text().replace('"version": 1', '"version": 2')
    with pytest.raises(exception.ResizeRefused, match="another version"):
        read_move(text)


def test_a_text_that_is_cut_off() -> None:
    text = MOVE.to_text()
    for length in range(len(text)):
        with pytest.raises(exception.ResizeRefused, match="damaged"):
            read_move(text[:length])


@pytest.mark.parametrize(
    "text",
    ["5", "[]", "{}", '{"same_host": false, "version": 1, "x": 1}', "[" * 100_000]
    + [
        json.dumps({**FIELDS, name: value})
        for name, value in (
            ("token", 5),
            ("token", "../x"),
            ("image_id", None),
            ("volumes", "/data"),
            ("volumes", ["/data"] * 1000),
            ("drive", 1),
        )
    ]
    + [json.dumps({**FIELDS, "volumes": [5]}), json.dumps({**FIELDS, "more": 1})],
)
def test_a_text_that_makes_no_sense(text: str) -> None:
    with pytest.raises(exception.ResizeRefused, match="damaged"):
        read_move(text)


@fuzz.examples(300)
@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        with fuzz.bounds():
            found = read_move(text)
    except exception.ResizeRefused:
        return
    assert found is None or read_move(found.to_text()) == found
