# SPDX-License-Identifier: Apache-2.0
"""The replacement of the mounts of lxcfs in many containers, on fakes."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_privsep import comm, daemon

from novadocker.virt.docker.guest.lxcfs import Lxcfs


@pytest.mark.parametrize(
    "failure",
    [
        OSError("the container has just ended"),
        comm.PrivsepTimeout("60 s"),
        daemon.FailedToDropPrivileges("sudo refuses"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_container_that_fails_does_not_keep_the_mounts_from_the_others(
    caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    listing: Any = SimpleNamespace(
        servers=lambda: {name: SimpleNamespace(id=name, name=name) for name in ("a", "b")}
    )
    engine: Any = SimpleNamespace(
        inspect_container=lambda _id: SimpleNamespace(pid=1), within=nullcontext
    )
    failing, restored = {"a"}, []

    def restore(container_id: str, _pid: int, _folder: str) -> int:
        if container_id in failing:
            raise failure
        restored.append(container_id)
        return 1

    loads: Any = None
    found = Lxcfs("/lxcfs", engine, listing, loads, restore)
    found._restore_all(1)
    assert restored == ["b"]
    assert f"Failed to replace mounts of lxcfs in a: {failure}" in caplog.text
    assert found._restored is None
    failing.clear()
    found._restore_all(1)
    assert found._restored == 1
