# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from novadocker.exporter import host, metrics, thinpool
from novadocker.exporter.thinpool import Space

# From an engine 20.10.
STATUS = [
    ["Pool Name", "docker-thinpool"],
    ["Data Space Used", "11.8MB"],
    ["Data Space Total", "107.4GB"],
    ["Data Space Available", "21.95GB"],
    ["Metadata Space Used", "17.36MB"],
    ["Metadata Space Total", "2.147GB"],
]
DATA = Space(107_400_000_000, 11_800_000)
METADATA = Space(2_147_000_000, 17_360_000)


def answer(status: object) -> bytes:
    return json.dumps({"Driver": "devicemapper", "DriverStatus": status}).encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (answer(STATUS), {"data": DATA, "metadata": METADATA}),
        (answer([pair for pair in STATUS if pair[0] != "Metadata Space Used"]), {"data": DATA}),
        (answer([["Data Space Used", "much"], ["Data Space Total", "1GB"]]), {}),
        (
            answer([["Data Space Used", "0B"], ["Data Space Total", "1.5 TB"]]),
            {"data": Space(1_500_000_000_000, 0)},
        ),
        (answer([["Backing Filesystem", "extfs"]]), {}),
        (answer(None), {}),
        (answer([["one"]]), {}),
        (b"{}", {}),
        (b"nonsense", {}),
    ],
)
def test_what_the_engine_tells(text: bytes, expected: dict[str, Space]) -> None:
    assert thinpool.parse_pool(text) == expected


def test_only_an_engine_with_a_pool_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(path: str, what: str) -> bytes | None:
        asked.append((path, what))
        return answers.pop()

    answers = [None, answer(STATUS)]
    monkeypatch.setattr(host, "ask_engine", ask)
    assert thinpool.read_pool(tmp_path, "/socket") == {}
    assert asked == []
    (tmp_path / "devicemapper").mkdir()
    assert thinpool.read_pool(tmp_path, "/socket") == {"data": DATA, "metadata": METADATA}
    assert thinpool.read_pool(tmp_path, "/socket") == {}
    assert asked == [("/socket", "/info")] * 2


def test_metrics() -> None:
    size, used = metrics.pool_metrics({"data": DATA, "metadata": METADATA})
    assert [(point.labels, point.value) for point in size.samples] == [
        ({"kind": "data"}, DATA.size_bytes),
        ({"kind": "metadata"}, METADATA.size_bytes),
    ]
    assert [point.value for point in used.samples] == [DATA.used_bytes, METADATA.used_bytes]
    assert size.name == "novadocker_host_storage_pool_size_bytes"
