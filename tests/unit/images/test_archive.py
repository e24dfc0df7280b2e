# SPDX-License-Identifier: Apache-2.0
"""Image archives: accepted ones, refused ones with reasons, and the content for the engine."""

import io
import json
import lzma
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from novadocker.virt.docker.images import archive, platforms, regions, writer
from novadocker.virt.docker.images.archive import ArchiveError
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import ChunkReader, Region, UnfitHostError
from tests import archives
from tests.archives import config, dump, entry, sha256, tar, tar_of
from tests.unit.images import disks

LAYERS = [tar({"etc/one": b"1" * 700}), tar({"etc/two": b"2"})]
CONFIG = config(LAYERS)
BUILDERS = {"docker": archives.docker_files, "oci": archives.oci_files}

Rewrite = Callable[..., dict[str, bytes]]


@pytest.fixture
def rewrite(tmp_path: Path) -> Rewrite:
    """Return a function that rewrites an archive and returns the files for the engine."""

    def call(
        content: bytes, architecture: str = "amd64", features: Collection[str] = ()
    ) -> dict[str, bytes]:
        platform = platforms.host_platform(architecture, features)
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            file.write(content)
            file.flush()
            region = Region(file.fileno(), 0, len(content))
            with archive.open_image(region, platform, tmp_path) as image:
                written = b"".join(writer.docker_archive(image))
        assert [path.name for path in tmp_path.iterdir()] == ["locks"]
        return read_tar(written)

    return call


def read_tar(content: bytes) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as opened:
        for member in opened:
            file = opened.extractfile(member)
            assert file is not None, member.name
            assert member.name not in found
            found[member.name] = file.read()
    return found


def expected(configuration: bytes = CONFIG, layers: list[bytes] = LAYERS) -> dict[str, bytes]:
    """Return the engine's files of an image, which are the same for every form of archive."""
    manifest = {
        "Config": f"{sha256(configuration)}.json",
        "RepoTags": None,
        "Layers": [f"{sha256(layer)}.tar" for layer in layers],
    }
    return {
        **{f"{sha256(layer)}.tar": layer for layer in layers},
        f"{sha256(configuration)}.json": configuration,
        "manifest.json": dump([manifest]),
    }


# -- accepted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["plain", "gzip", "zstd", "xz"])
@pytest.mark.parametrize("outer", ["plain", "gzip", "zstd", "xz"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_accepted(rewrite: Rewrite, kind: str, outer: str, inner: str) -> None:
    files = BUILDERS[kind](CONFIG, LAYERS, tags=["a:1", "b:2"], compression=inner)
    assert rewrite(archives.compress(tar(files), outer)) == expected()


def test_folder_entries_and_leading_dots(rewrite: Rewrite) -> None:
    files = archives.oci_files(CONFIG, LAYERS)
    folders = [entry(name, type=tarfile.DIRTYPE) for name in (".", "./blobs", "./blobs")]
    content = tar_of(folders + [entry(f"./{name}", data) for name, data in files.items()])
    assert rewrite(content) == expected()


@pytest.mark.parametrize(
    ("link_type", "target"),
    [(tarfile.SYMTYPE, "../first/layer.tar"), (tarfile.LNKTYPE, "first/layer.tar")],
)
def test_links_inside_the_archive(rewrite: Rewrite, link_type: bytes, target: str) -> None:
    layers = [LAYERS[0], LAYERS[0]]
    configuration = config(layers)
    manifest = [{"Config": "c.json", "Layers": ["first/layer.tar", "second/layer.tar"]}]
    content = tar_of(
        [
            entry("first/layer.tar", LAYERS[0]),
            entry("second/layer.tar", type=link_type, linkname=target),
            entry("c.json", configuration),
            entry("manifest.json", dump(manifest)),
        ]
    )
    assert rewrite(content) == expected(configuration, layers)


def test_files_not_named_are_dropped(rewrite: Rewrite) -> None:
    files = archives.docker_files(CONFIG, LAYERS, tags=["novadocker/x:1"])
    files |= {"0/json": b"{}", "0/VERSION": b"1.0", "evil": b"x"}
    assert rewrite(tar(files)) == expected()


def test_hybrid_archive_counts_as_docker_archive(rewrite: Rewrite) -> None:
    other = archives.oci_files(config(LAYERS, architecture="arm64"), LAYERS)
    assert rewrite(tar(other | archives.docker_files(CONFIG, LAYERS))) == expected()


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_the_hosts_image_of_a_multi_platform_archive(
    rewrite: Rewrite, described: bool, nested: bool
) -> None:
    files: archives.Files = {}
    descriptors = []
    for architecture in ("arm64", "amd64", "s390x"):
        more = {"platform": {"os": "linux", "architecture": architecture}} if described else {}
        configuration = config(LAYERS, architecture=architecture)
        descriptors.append(archives.oci_manifest(files, configuration, LAYERS, **more))
    # BuildKit adds such descriptors.
    descriptors.append(
        archives.oci_manifest(
            files,
            config(LAYERS, architecture="unknown", os="unknown"),
            LAYERS,
            platform={"os": "unknown", "architecture": "unknown"},
        )
    )
    if nested:
        index = dump({"manifests": descriptors})
        descriptors = [archives.descriptor(files, index, archives.INDEX_TYPE)] * 2
    content = tar(archives.oci_index(files, descriptors))
    assert rewrite(content) == expected()
    arm = config(LAYERS, architecture="arm64")
    assert rewrite(content, architecture="arm64") == expected(arm)
    with pytest.raises(ArchiveError, match="it is for linux/amd64, linux/arm64, linux/s390x; this"):
        rewrite(content, architecture="ppc64le")


@pytest.mark.parametrize("builder", archives.OTHER_BUILDERS)
def test_archives_of_other_builders(rewrite: Rewrite, builder: str) -> None:
    assert rewrite(archives.OTHER_BUILDERS[builder](CONFIG, LAYERS)) == expected()


V2 = {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
V4 = V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}


@pytest.mark.parametrize(
    ("features", "best"), [((), ""), (V2 - {"pni"}, ""), (V2, "v2"), (V3, "v3"), (V4, "v3")]
)
@pytest.mark.parametrize("described", [True, False])
def test_the_best_variant_for_the_host(
    rewrite: Rewrite, features: Collection[str], best: str, described: bool
) -> None:
    files: archives.Files = {}
    descriptors, images = [], {}
    for variant in ("v3", "", "v2", "v9"):
        named = {"variant": variant} if variant else {}
        # BuildKit writes the variant into both.
        images[variant] = config(LAYERS, **({"created": variant} if described else named))
        platform = {"os": "linux", "architecture": "amd64", **named}
        more = {"platform": platform} if described else {}
        descriptors.append(archives.oci_manifest(files, images[variant], LAYERS, **more))
    content = tar(archives.oci_index(files, descriptors))
    assert rewrite(content, features=features) == expected(images[best])


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_variant_that_the_host_can_not_run(rewrite: Rewrite, kind: str) -> None:
    configuration = config(LAYERS, variant="v3")
    content = tar(BUILDERS[kind](configuration, LAYERS))
    assert rewrite(content, features=V3) == expected(configuration)
    with pytest.raises(UnfitHostError, match="for linux/amd64/v3; this host runs linux/amd64/v2"):
        rewrite(content, features=V2)


def test_images_of_other_platforms_may_be_left_out(rewrite: Rewrite) -> None:
    files: archives.Files = {}
    absent = archives.oci_manifest(
        {}, CONFIG, LAYERS, platform={"os": "linux", "architecture": "arm64"}
    )
    present = archives.oci_manifest(files, CONFIG, LAYERS)
    assert rewrite(tar(archives.oci_index(files, [absent, present]))) == expected()


def test_artifacts_beside_the_image(rewrite: Rewrite) -> None:
    files: archives.Files = {}
    image = archives.oci_manifest(files, CONFIG, LAYERS)
    chart = {"config": archives.descriptor(files, b"{}", "application/x-chart"), "layers": []}
    artifact = archives.descriptor(files, dump(chart), archives.MANIFEST_TYPE)
    assert rewrite(tar(archives.oci_index(files, [artifact, image]))) == expected()
    with pytest.raises(ArchiveError, match="it holds no image"):
        rewrite(tar(archives.oci_index(files, [artifact])))


def test_a_layer_without_entries(rewrite: Rewrite) -> None:
    layers = [LAYERS[0], bytes(1024), b""]
    configuration = config(layers)
    files = archives.docker_files(configuration, layers)
    assert rewrite(tar(files)) == expected(configuration, layers)


def test_a_layer_listed_twice(rewrite: Rewrite) -> None:
    layers = [*LAYERS, LAYERS[0]]
    configuration = config(layers)
    found = rewrite(tar(archives.docker_files(configuration, layers)))
    assert found == expected(configuration, layers)


# -- refused ------------------------------------------------------------------------------------


def docker_with(**changes: Any) -> bytes:
    """Return a docker archive whose only manifest entry is changed."""
    files = archives.docker_files(CONFIG, LAYERS)
    manifest = json.loads(files["manifest.json"])
    manifest[0] |= changes
    return tar(files | {"manifest.json": dump(manifest)})


def docker_of(configuration: bytes) -> bytes:
    return tar(archives.docker_files(configuration, LAYERS))


def oci_with(**files: bytes) -> bytes:
    return tar(archives.oci_files(CONFIG, LAYERS) | files)


def two_images_oci() -> bytes:
    files: archives.Files = {}
    configurations = (CONFIG, config(LAYERS, created="later"))
    found = [archives.oci_manifest(files, each, LAYERS) for each in configurations]
    return tar(archives.oci_index(files, found))


def changed_blob(of: bytes) -> bytes:
    """Return an OCI archive with other content under a blob's name."""
    files = archives.oci_files(CONFIG, LAYERS)
    files[f"blobs/sha256/{sha256(of)}"] = of[:-1] + b"x"
    return tar(files)


def stolen_layers() -> bytes:
    """Return an archive that names another image's layers by digest and contains none of them."""
    files = archives.docker_files(CONFIG, [b"", b""])
    return tar(files)


def many_descriptors() -> bytes:
    files: archives.Files = {}
    found = archives.oci_manifest(files, CONFIG, LAYERS)
    others = [{**found, "digest": f"sha256:{number:064x}"} for number in range(300)]
    return tar(archives.oci_index(files, [*others, found]))


def index_loop() -> bytes:
    """Return indexes that list each other a hundred times, deeper than memory could hold."""
    files: archives.Files = {}
    found = archives.oci_manifest(files, CONFIG, LAYERS)
    for depth in range(9):
        index = dump({"depth": depth, "manifests": [found] * 100})
        found = archives.descriptor(files, index, archives.INDEX_TYPE)
    return tar(archives.oci_index(files, [found] * 2))


DOCKER = archives.docker_files(CONFIG, LAYERS)
OCI = archives.oci_files(CONFIG, LAYERS)
LAYER_NAME = json.loads(DOCKER["manifest.json"])[0]["Layers"][0]
TERABYTE = archives.tar_of(
    [entry("zeros", b"0\n", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": "1" * 12})]
)
SPARSE = entry(LAYER_NAME, pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"})


def docker_and(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    return tar_of([*entries, *[entry(name, data) for name, data in DOCKER.items()]])


def docker_but(name: str, *entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    return tar_of([*entries, *[entry(n, data) for n, data in DOCKER.items() if n != name]])


def damaged_zstd(content: bytes) -> bytes:
    """Return a compressed file without its end, or nothing on a machine without zstd."""
    return archives.compress(content, "zstd")[:-9] if archives.HAS_ZSTD else b""


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a tar archive"),
    "text": (b"#!/bin/sh\necho hello\n" * 100, "not a tar archive"),
    "a disk image": (b"QFI\xfb" + bytes(70000), "not a tar archive"),
    "zeros": (bytes(10240), "it holds no image"),
    "gzip of text": (archives.compress(b"text" * 999, "gzip"), "not a tar archive"),
    "gzip alone": (b"\x1f\x8b", "the archive is damaged"),
    "zstd alone": (b"\x28\xb5\x2f\xfd", "the archive is damaged"),
    "gzip and more": (archives.compress(docker_of(CONFIG), "gzip") + b"tail", "is damaged"),
    "bzip2": (archives.compress(docker_of(CONFIG), "bzip2"), "with bzip2; use gzip, zstd or xz"),
    "xz": (b"\xfd7zXZ\x00" + bytes(99), "the archive is damaged"),
    "xz with a window of 256 MiB": (
        lzma.compress(docker_of(CONFIG), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]),
        "The limit is 128 MiB",
    ),
    "a tar of files": (tar({"bin/sh": b"x"}), "holds no image: neither manifest.json nor index"),
    "no entry": (tar(DOCKER | {"manifest.json": b"[]"}), "holds 0 images"),
    "two entries": (
        tar(DOCKER | {"manifest.json": dump(json.loads(DOCKER["manifest.json"]) * 2)}),
        "holds 2 images; save one image per archive",
    ),
    "manifest no JSON": (tar(DOCKER | {"manifest.json": b"[{"}), "is not JSON"),
    "manifest not text": (
        tar(DOCKER | {"manifest.json": b"\xff\xfe"}),
        "is not JSON",
    ),
    "manifest nested": (
        tar(DOCKER | {"manifest.json": b"[" * 100000}),
        "is not JSON",
    ),
    "manifest object": (tar(DOCKER | {"manifest.json": b"{}"}), "manifest.json is malformed"),
    "manifest of text": (tar(DOCKER | {"manifest.json": b'["x"]'}), "manifest.json is malformed"),
    "manifest large": (
        tar(DOCKER | {"manifest.json": b" " * (1 << 20) + b"[]"}),
        "'manifest.json' is larger than 1048576 bytes",
    ),
    "config of another type": (docker_with(Config=5), "Config is missing or of another type"),
    "config missing": (docker_with(Config="none.json"), "'none.json' is missing"),
    "config outside": (docker_with(Config="../../etc/passwd"), "is missing"),
    "config absolute": (docker_with(Config="/etc/passwd"), "is missing"),
    "config with a lone surrogate": (docker_with(Config="\ud800"), r"'\\ud800' is missing"),
    "layers of another type": (docker_with(Layers=[1]), "Layers has a member of another type"),
    "layers missing": (docker_with(Layers=None), "Layers is missing"),
    "a layer missing": (docker_with(Layers=["x", LAYER_NAME]), "'x' is missing"),
    "a layer too few": (docker_with(Layers=[LAYER_NAME]), "names 1 layers, its configuration 2"),
    "layers in another order": (
        docker_with(Layers=json.loads(DOCKER["manifest.json"])[0]["Layers"][::-1]),
        "layer 1 does not match its digest",
    ),
    "layers of somebody else": (stolen_layers(), "layer 1 does not match its digest"),
    "config large": (docker_of(CONFIG + b" " * (4 << 20)), "larger than 4194304 bytes"),
    "config no object": (docker_of(b"[]"), "image configuration is malformed"),
    "config without rootfs": (docker_of(config(LAYERS, rootfs=None)), "rootfs is missing"),
    "config with a name twice": (
        docker_of(CONFIG.replace(b'"os"', b'"os": "linux", "os"')),
        "the same name twice",
    ),
    "config with two rootfs": (
        docker_of(config(LAYERS, RootFS={"diff_ids": ["sha256:" + "0" * 64] * 2})),
        "ambiguous name 'RootFS'",
    ),
    "config with an odd letter": (
        docker_of(config(LAYERS, **{"root\u017fs": {}, "roo\u0165": {}, "rootf\u017f": {}})),
        "ambiguous name 'rootf",
    ),
    "config with two lists of digests": (
        docker_of(config(LAYERS, rootfs={"diff_ids": [], "Diff_IDs": []})),
        "ambiguous name 'Diff_IDs'",
    ),
    "digest malformed": (
        docker_of(config(LAYERS, rootfs={"diff_ids": ["sha256:../x"]})),
        "malformed digest",
    ),
    "digest of another kind": (
        docker_of(config(LAYERS, rootfs={"diff_ids": ["sha512:" + "0" * 128]})),
        "sha256 is supported",
    ),
    "no layers": (tar(archives.docker_files(config([]), [])), "it has 0 layers"),
    "200 layers": (
        tar(archives.docker_files(config(LAYERS[:1] * 200), LAYERS[:1] * 200)),
        "it has 200 layers; 1 to 127 are possible",
    ),
    "many layers": (
        tar(archives.docker_files(config([b""] * 128), [b""] * 128)),
        "it has 128 layers; 1 to 127 are possible",
    ),
    "layer is text": (
        tar(archives.docker_files(config([b"text" * 999]), [b"text" * 999])),
        "layer 1 is not a tar archive",
    ),
    "layer in bzip2": (
        tar(DOCKER | {LAYER_NAME: archives.compress(LAYERS[0], "bzip2")}),
        "layer 1 is compressed with bzip2",
    ),
    "layer in damaged gzip": (
        tar(DOCKER | {LAYER_NAME: archives.compress(LAYERS[0], "gzip")[:-9]}),
        "layer 1 is damaged",
    ),
    "layer in damaged zstd": (
        tar(DOCKER | {LAYER_NAME: damaged_zstd(LAYERS[0])}),
        "layer 1 is damaged",
    ),
    "another architecture": (
        docker_of(config(LAYERS, architecture="arm64")),
        "it is for linux/arm64; this host runs linux/amd64",
    ),
    "another system": (docker_of(config(LAYERS, os="windows")), "it is for windows/amd64"),
    "odd architecture": (docker_of(config(LAYERS, architecture="\ud800<")), r"for linux/\?\?;"),
    "no architecture": (docker_of(config(LAYERS, architecture=None)), "it is for linux/unknown"),
    "another architecture, OCI": (
        tar(archives.oci_files(config(LAYERS, architecture="arm64"), LAYERS)),
        "it is for linux/arm64; this host runs linux/amd64",
    ),
    "index of another type": (oci_with(**{"index.json": b"[]"}), "index.json is malformed"),
    "index empty": (oci_with(**{"index.json": b'{"manifests": []}'}), "it holds no image"),
    "index with a path": (
        oci_with(**{"index.json": b'{"manifests": [{"digest": "sha256:../../index.json"}]}'}),
        "malformed digest",
    ),
    "two images": (two_images_oci(), "it holds 2 images for linux/amd64"),
    "many images": (many_descriptors(), "lists more than 256 images"),
    "index loop": (index_loop(), "lists more than 256 images"),
    "blob missing": (
        tar({name: data for name, data in OCI.items() if data not in LAYERS}),
        "is missing; the archive may be truncated",
    ),
    "changed config": (changed_blob(CONFIG), "does not match its digest"),
    "changed layer": (changed_blob(LAYERS[0]), "layer 1 does not match its digest"),
    "changed manifest": (
        tar({n: d.replace(b'"config"', b'"cOnfig"') for n, d in OCI.items()}),
        "does not match its digest",
    ),
    "absolute entry": (docker_and(entry("/etc/cron.d/x")), "forbidden entry '/etc/cron.d/x'"),
    "entry outside": (docker_and(entry("a/../../x")), "forbidden entry 'a/../../x'"),
    "link to a path": (
        docker_and(entry("x", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "entry 'x' links out of the archive",
    ),
    "link outside": (
        docker_but(
            LAYER_NAME, entry(LAYER_NAME, type=tarfile.SYMTYPE, linkname="../../etc/shadow")
        ),
        "links out of the archive",
    ),
    "hard link outside": (
        docker_and(entry("a/x", type=tarfile.LNKTYPE, linkname="a/../../etc/shadow")),
        "links out of the archive",
    ),
    "link to itself": (
        docker_but(LAYER_NAME, entry(LAYER_NAME, type=tarfile.SYMTYPE, linkname="layer.tar")),
        "is a chain of more than 8 links",
    ),
    "device": (
        docker_but(LAYER_NAME, entry(LAYER_NAME, type=tarfile.CHRTYPE)),
        "is not a regular file",
    ),
    "folder": (
        docker_but(LAYER_NAME, entry(LAYER_NAME, type=tarfile.DIRTYPE)),
        "not a regular file",
    ),
    "sparse": (docker_but(LAYER_NAME, SPARSE), "has a sparse file"),
    "terabyte of zeros": (
        tar(archives.docker_files(config([TERABYTE]), [TERABYTE])),
        "a layer has a sparse file",
    ),
    "entry twice": (docker_and(entry("manifest.json", b"[]")), "entry 'manifest.json' twice"),
    "entry twice by another name": (
        docker_and(entry("./x/.//manifest.json", b"[]"), entry("x/manifest.json")),
        "twice",
    ),
    "headers without end": (
        docker_and(*[entry(f"{number}") for number in range(9000)]),
        "tar headers take more than 4194304 bytes",
    ),
    "a name of a gigabyte": (
        entry("x", type=tarfile.GNUTYPE_LONGNAME, size=1 << 30)[0].tobuf() + bytes(9999),
        "an extended tar header has more than 1048576 bytes",
    ),
    "a negative size": (
        entry("x", size=-512)[0].tobuf(tarfile.GNU_FORMAT) * 9,
        "a negative size",
    ),
    "a huge size": (
        entry("x", size=1 << 62)[0].tobuf(tarfile.GNU_FORMAT) + bytes(999),
        "it is truncated",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(rewrite: Rewrite, tmp_path: Path, case: str) -> None:
    if "zstd" in case and not archives.HAS_ZSTD:
        pytest.skip(archives.NO_ZSTD)
    content, reason = BAD[case]
    with pytest.raises(ArchiveError, match=reason) as raised:
        rewrite(content)
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]
    # The reason becomes the server's fault in a database and a log.
    str(raised.value).encode()
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("outer", ["plain", "gzip", "zstd"])
def test_truncated(rewrite: Rewrite, kind: str, outer: str) -> None:
    content = archives.compress(tar(BUILDERS[kind](CONFIG, LAYERS)), outer)
    refused = 0
    for size in range(1, len(content), len(content) // 40):
        try:
            # The end of a tar archive may be missing if it contains no required entry.
            assert rewrite(content[:size]) == expected()
        except ArchiveError:
            refused += 1
    assert refused >= 15


def test_damage_never_surprises(rewrite: Rewrite) -> None:
    """Random damage is refused or harmless: no other error occurs, and only the image is loaded."""
    dice = random.Random(7)
    for _ in range(400):
        content = bytearray(tar(dice.choice([DOCKER, OCI])))
        for _ in range(dice.choice([1, 1, 3, 30])):
            content[dice.randrange(len(content))] = dice.choice([0, 0xFF, 0x80, *b"0127/.L"])
        try:
            found = rewrite(bytes(content))
        except ArchiveError:
            continue
        layers = [data for name, data in found.items() if name.endswith(".tar")]
        assert layers == LAYERS


# -- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["gzip", "zstd", "xz"])
def test_a_bomb_stops_at_the_room_there_is(
    rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    bomb = archives.compress(bytes(64 << 20), program)
    disks.small(monkeypatch, 16 << 20)
    with pytest.raises(ArchiveError, match="the archive unpacks to more than this host has room"):
        rewrite(bomb)
    layers = [archives.tar({"zeros": bytes(5 << 20)}), archives.tar({"ones": b"1" * (5 << 20)})]
    files = archives.docker_files(config(layers), layers, compression=program)
    with pytest.raises(ArchiveError, match="layer 2 unpacks to more"):
        rewrite(tar(files))


def test_a_program_that_is_missing(rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch) -> None:
    content = archives.compress(docker_of(CONFIG), "zstd")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UnfitHostError, match="lacks: install the package zstd"):
        rewrite(content)


def test_a_program_that_hangs(
    rewrite: Rewrite, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    programs = tmp_path_factory.mktemp("programs")
    (programs / "zstd").write_text("#!/bin/sh\nexec sleep 100\n")
    (programs / "zstd").chmod(0o755)
    content = archives.compress(docker_of(CONFIG), "zstd")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setattr(regions, "_UNPACK_SECONDS", 0.2)
    with pytest.raises(ArchiveError, match="takes over"):
        rewrite(content)


def test_pieces_are_small(tmp_path: Path) -> None:
    layers = [tar({"zeros": bytes(5 << 20)})]
    content = tar(archives.docker_files(config(layers), layers))
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(content)
        file.flush()
        region = Region(file.fileno(), 0, len(content))
        with archive.open_image(region, Platform("amd64"), tmp_path) as image:
            assert image.digest == sha256(config(layers))
            sizes = [len(piece) for piece in writer.docker_archive(image)]
    assert max(sizes) <= 256 << 10
    assert sum(sizes) > 5 << 20


def test_the_manifest_comes_last(tmp_path: Path) -> None:
    """An engine that loses the connection must not find a complete image in its input."""

    def names() -> Iterator[str]:
        with tempfile.TemporaryFile(dir=tmp_path) as file:
            file.write(tar(DOCKER))
            file.flush()
            region = Region(file.fileno(), 0, len(tar(DOCKER)))
            with archive.open_image(region, Platform("amd64"), tmp_path) as image:
                yield from read_tar(b"".join(writer.docker_archive(image)))

    assert list(names())[-1] == "manifest.json"


def test_pieces_are_read_in_small_ones() -> None:
    """uWSGI in front of Glance refuses chunks of 1 MiB."""
    reader = ChunkReader(iter([b"", b"a" * 300_000, b"b"]))
    sizes = []
    while piece := reader.read(1 << 20):
        sizes.append(len(piece))
    assert sizes == [262144, 37856, 1]
    assert reader.size == 300_001
