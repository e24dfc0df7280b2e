# SPDX-License-Identifier: Apache-2.0
"""Files of load averages that the driver writes and the exporter reads."""

from pathlib import Path

import pytest

from novadocker.state_files import load_averages


def test_a_line_is_written_in_place_and_read(tmp_path: Path) -> None:
    file = Path(load_averages.path_of(str(tmp_path), "uuid"))
    line = load_averages.render((0.5, 12.345, 100.0), 2, 40, 4711)
    with pytest.raises(FileNotFoundError):
        load_averages.write(file, line)
    file.parent.mkdir()
    file.touch()
    inode = file.stat().st_ino
    load_averages.write(file, line)
    values, written_at = load_averages.read(file)
    assert values == (0.5, 12.35, 100.0)
    assert (file.stat().st_ino, file.stat().st_mtime) == (inode, written_at)


@pytest.mark.parametrize("text", [None, "", "1 2 3 4\n", "nan inf 0.00 1/2 3\n", "1.00\n"])
def test_a_missing_or_malformed_text_has_no_averages(text: str | None) -> None:
    assert load_averages.parse(text) is None
