# SPDX-License-Identifier: Apache-2.0
import itertools
from pathlib import Path

import pytest

from novadocker.linux import device_users, libc

NUMBER = 7


def test_the_search_goes_on_until_no_process_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    listings = [{("1", "5")}, {("1", "5"), ("self", "6")}]
    monkeypatch.setattr(device_users, "_processes", lambda _: listings.pop(0))
    opened = {"1": [], "self": [NUMBER]}
    monkeypatch.setattr(device_users, "open_devices", opened.get)
    name = Path("/proc/self/comm").read_text()[:-1]
    assert device_users.find("c", NUMBER) == f"process {name!r}"


def test_the_search_ends_while_processes_start_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(device_users, "_processes", lambda _: {(str(next(numbers)), "5")})
    monkeypatch.setattr(device_users, "open_devices", lambda _: ())
    assert device_users.find("c", NUMBER) == "a process that has just started"


def test_a_process_that_is_searched_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    monkeypatch.setattr(device_users, "_processes", lambda _: {("1", "5")})
    monkeypatch.setattr(device_users, "open_devices", lambda pid: searched.append(pid) or ())
    assert device_users.find("c", NUMBER) == ""
    assert searched == ["1"]


def test_the_type_of_a_file(tmp_path: Path) -> None:
    null = Path("/dev/null").stat()
    assert libc.cached_type("/dev/null") == (null.st_mode, null.st_rdev)
    with pytest.raises(FileNotFoundError):
        libc.cached_type(str(tmp_path / "none"))
