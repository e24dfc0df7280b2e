# SPDX-License-Identifier: Apache-2.0
"""The page and the list of results."""

from pathlib import Path

import pytest

from tests.functional import page
from tests.functional.run import Result

RESULTS = [
    Result("a.One.test_two", "passed", 1),
    Result("a.One.test_one", "passed", 2),
    Result("b.Two.test_idle", "passed", 0),
    Result(
        *("b.Two.test_volume", "left out", 0),
        "needs volumes with devices, which Nova's fake Cinder has not",
    ),
    Result("c.Three.test_fake", "other driver", 0, "fake.SmallFakeDriver"),
]


def test_the_list_has_every_test():
    assert page.data(RESULTS).splitlines() == [
        "result,test",
        '"passed, and booted a container",a.One.test_one',
        '"passed, and booted a container",a.One.test_two',
        "needs another fake driver of Nova's for its further behaviour,c.Three.test_fake",
        '"needs volumes with devices, which Nova\'s fake Cinder has not",b.Two.test_volume',
        '"passes, but boots no container, so it does not test a driver",b.Two.test_idle',
    ]


def test_page_and_list_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page, "PAGE", tmp_path / "functional.rst")
    monkeypatch.setattr(page, "DATA", tmp_path / "functional.csv")
    page.write(RESULTS)
    text = (tmp_path / "functional.rst").read_text()
    assert "* - 5 tests\n     - Number\n   * - passed, and booted a container\n     - 2\n" in text
    assert (tmp_path / "functional.csv").read_text() == page.data(RESULTS)
