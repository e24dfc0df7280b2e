# SPDX-License-Identifier: Apache-2.0
"""The source's part of a move."""

from typing import Any

import pytest
from oslo_privsep import comm

from novadocker.virt.docker.migration import transfer


def test_a_privileged_call_that_takes_too_long_is_a_failure_of_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nova rolls back an OSError, and the thread of backups goes on after one."""

    def send_folders(*_arguments: Any) -> int:
        raise comm.PrivsepTimeout("3600 s")

    monkeypatch.setattr(transfer.staging, "send_folders", send_folders)
    with pytest.raises(OSError, match="took too long"):
        transfer.stream_writer("0" * 32, [], live=True)((1, 2))
