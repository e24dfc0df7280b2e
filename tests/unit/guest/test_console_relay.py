# SPDX-License-Identifier: Apache-2.0
"""Window sizes that a client reports, removed from its input."""

import pytest

from novadocker.virt.docker.guest.console import SizeReports


@pytest.mark.parametrize(
    ("pieces", "passed", "sizes"),
    [
        ([b"ls\r"], b"ls\r", []),
        ([b"\x1b"], b"\x1b", []),
        ([b"\x1b[A\x1b[8~"], b"\x1b[A\x1b[8~", []),
        ([b"a\x1b[8;50;132tb"], b"ab", [(50, 132)]),
        ([b"a\x1b[8", b";50;1", b"32tb"], b"ab", [(50, 132)]),
        ([b"\x1b[8;5;6t\x1b[8;7;8t"], b"", [(7, 8)]),
        # This report has no valid size; the next ones answer other queries.
        ([b"\x1b[8;0;80t"], b"", []),
        ([b"\x1b[8;12345;80t"], b"\x1b[8;12345;80t", []),
        ([b"\x1b[8;5", b"x"], b"\x1b[8;5x", []),
        ([b"\x1b[4;600;800t"], b"\x1b[4;600;800t", []),
    ],
)
def test_size_reports(pieces: list[bytes], passed: bytes, sizes: list[tuple[int, int]]) -> None:
    reports = SizeReports()
    seen = [reports.feed(piece) for piece in pieces]
    assert b"".join(data for data, _ in seen) == passed
    assert [size for _, size in seen if size] == sizes
