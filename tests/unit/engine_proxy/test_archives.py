# SPDX-License-Identifier: Apache-2.0
"""Archives for the engine: those that the driver writes pass, and no others."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.engine_proxy.archives import ImageCheck
from novadocker.engine_proxy.forms import Refused
from novadocker.virt.docker.images import archive, writer
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import Region
from tests import archives, fuzz

CONFIG = f"{'c' * 64}.json"
LAYER = f"{'a' * 64}.tar"
END = bytes(2 * tarfile.BLOCKSIZE)


def file(name: str, content: bytes) -> bytes:
    return writer.header(name, len(content)) + content + writer.padding(len(content))


def manifest(**changes: Any) -> bytes:
    image = {"Config": CONFIG, "RepoTags": None, "Layers": [LAYER, "early-0.tar"], **changes}
    return json.dumps([image]).encode()


LAYERS = file("early-0.tar", b"x" * 700) + file(LAYER, b"") + file(CONFIG, b"{}")
GOOD = LAYERS + file("manifest.json", manifest()) + END


def check(made: bytes, sizes: Sequence[int] = ()) -> None:
    checked = ImageCheck()
    position = 0
    for size in (*sizes, len(made)):
        checked.feed(made[position : position + size])
        position += size
    checked.finish()


def test_an_archive_of_the_driver_s_writer(tmp_path: Path) -> None:
    layers = [archives.tar({"etc/motd": b"x"})]
    uploaded = archives.tar(archives.docker_files(archives.config(layers), layers))
    path = tmp_path / "image.tar"
    path.write_bytes(uploaded)
    with path.open("rb") as source:
        region = Region(source.fileno(), 0, len(uploaded))
        with archive.open_image(region, Platform("amd64"), tmp_path) as image:
            check(b"".join(writer.docker_archive(image)))


def test_a_layer_of_more_than_eight_gib_begins() -> None:
    ImageCheck().feed(writer.header(LAYER, 9 << 30) + b"x" * 1000)


@given(st.lists(st.integers(1, 600), max_size=20))
def test_chunks_of_any_size(sizes: list[int]) -> None:
    check(GOOD, sizes)


def changed(name: str, **attributes: Any) -> bytes:
    """Return the header of an entry of another form than the driver's."""
    entry, _ = archives.entry(name, b"", **attributes)
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "made",
    [
        LAYERS + file("manifest.json", manifest(RepoTags=["nginx:latest"])) + END,
        LAYERS + file("manifest.json", manifest(RepoTags=[])) + END,
        LAYERS + file("manifest.json", manifest(repotags=["nginx:latest"])) + END,
        LAYERS + file("manifest.json", manifest(Parent="x")) + END,
        LAYERS + file("manifest.json", manifest(Layers=["/etc/shadow"])) + END,
        LAYERS + file("manifest.json", manifest()[:-1] + b"," + manifest()[1:]) + END,
        LAYERS + file("manifest.json", b'[{"RepoTags": ["a"], "RepoTags": null}]') + END,
        LAYERS + file("manifest.json", b"") + END,
        LAYERS + file("manifest.json", manifest()) + file("manifest.json", manifest()) + END,
        LAYERS + file("manifest.json", manifest()) + file("repositories", b"{}") + END,
        LAYERS + file("repositories", b"{}") + file("manifest.json", manifest()) + END,
        LAYERS + file("index.json", b"{}") + file("manifest.json", manifest()) + END,
        LAYERS + file("./manifest.json", manifest()) + END,
        LAYERS + END + LAYERS + file("manifest.json", manifest()) + END,
        LAYERS + END,
        LAYERS + changed(LAYER, type=tarfile.SYMTYPE, linkname="/etc") + GOOD,
        LAYERS + changed(LAYER, mode=0o4755) + GOOD,
        LAYERS + changed("x" * 200 + ".tar") + GOOD,
        LAYERS + changed(LAYER, type=tarfile.XHDTYPE) + GOOD,
        GOOD[:-1],
        GOOD[: -2 * tarfile.BLOCKSIZE],
        GOOD + b"x" * tarfile.BLOCKSIZE,
        b"\x1f\x8b" + GOOD,
        b"",
    ],
)
def test_what_is_refused(made: bytes) -> None:
    with pytest.raises(Refused):
        check(made)


def test_a_wrong_manifest_is_refused_before_the_engine_has_it() -> None:
    before = LAYERS + file("manifest.json", manifest(RepoTags=["nginx:latest"]))
    last = len(before.rstrip(b"\0"))
    checked = ImageCheck()
    checked.feed(before[: last - 1])
    with pytest.raises(Refused):
        checked.feed(before[last - 1 : last])


@fuzz.examples(300)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=600))
def test_no_change_gives_an_image_a_name(position: int, patch: bytes) -> None:
    made = GOOD[:position] + patch + GOOD[position + len(patch) :]
    try:
        with fuzz.bounds():
            check(made)
    except Refused:
        return
    with tarfile.open(fileobj=io.BytesIO(made)) as read:
        source = read.extractfile("manifest.json")
        assert source is not None
        assert [image["RepoTags"] for image in json.load(source)] == [None]
