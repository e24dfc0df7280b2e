# SPDX-License-Identifier: Apache-2.0
"""The layer of an incomplete archive that is taken for the lowest layer."""

import pytest

from novadocker.virt.docker.images.streaming import Guess
from tests import archives

ID, OTHER = "1" * 64, "2" * 64
CONFIG = archives.dump({"rootfs": {"diff_ids": [f"sha256:{OTHER}", f"sha256:{ID}"]}})


@pytest.mark.parametrize(
    ("files", "lowest"),
    [
        ({"a.tar": None, "b.tar": None}, "a.tar"),
        ({"a/layer.tar": b"small", "b/layer.tar": None}, None),
        ({"LICENSE": b"", "a/layer.tar": None, "b/layer.tar": None}, "a/layer.tar"),
        # Archives of engines before 25.
        (
            {
                "a/VERSION": b"1.0",
                "a/json": b'{"id": "a", "parent": "b"}',
                "a/layer.tar": None,
                "b/json": b'{"id": "b"}',
                "b/layer.tar": None,
            },
            "b/layer.tar",
        ),
        # OCI layouts.
        (
            {
                f"blobs/sha256/{ID}": None,
                "blobs/sha256/config": CONFIG,
                f"blobs/sha256/{OTHER}": None,
            },
            f"blobs/sha256/{OTHER}",
        ),
        ({f"blobs/sha256/{OTHER}": None, "blobs/sha256/config": CONFIG}, None),
        ({"config.json": CONFIG, f"{ID}.tar": None, f"{OTHER}.tar": None}, f"{OTHER}.tar"),
        ({"config.json": b"{", "a.tar": None}, "a.tar"),
        ({"config.json": b'{"rootfs": {"diff_ids": {}}}', "a.tar": None}, "a.tar"),
        ({"config.json": b'{"rootfs": {"diff_ids": [[]]}}', "a.tar": None}, None),
    ],
)
def test_the_lowest_layer(files: dict[str, bytes | None], lowest: str | None) -> None:
    guess = Guess()
    found = []
    for name, content in files.items():
        if content is not None:
            guess.note(name, content)
        elif guess.is_lowest(name):
            found.append(name)
    assert found == ([lowest] if lowest else [])


def test_no_second_guess() -> None:
    guess = Guess()
    assert guess.is_lowest("a.tar")
    guess.note("config.json", CONFIG)
    assert not guess.is_lowest(f"{OTHER}.tar")
