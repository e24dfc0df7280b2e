# SPDX-License-Identifier: Apache-2.0
import threading

import pytest

from novadocker.linux.threads import meanwhile


def test_both_run_at_once() -> None:
    begun, finish = threading.Event(), threading.Event()

    def work(value: int, *, more: int) -> None:
        begun.set()
        assert finish.wait(30)
        done.append((value, more))

    done: list[tuple[int, int]] = []
    with meanwhile(work, 1, more=2):
        assert begun.wait(30)
        assert done == []
        finish.set()
    assert done == [(1, 2)]


def test_errors() -> None:
    done = threading.Event()

    def fail() -> None:
        done.set()
        raise KeyError("the function's")

    with pytest.raises(KeyError, match="the function's"), meanwhile(fail):
        pass
    done.clear()
    with pytest.raises(ValueError, match="the block's"), meanwhile(fail):
        raise ValueError("the block's")
    assert done.is_set()
