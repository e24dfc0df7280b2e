# SPDX-License-Identifier: Apache-2.0
"""Image archives in ``docker save``'s format, written without a Docker Engine."""

import hashlib
import json
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's names of processor architectures, and Docker's."""


class ArchiveError(Exception):
    """An archive cannot be written."""


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 digest in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_layer(rootfs: Path, layer: Path) -> None:
    """Write a root directory as a layer, with owners, modes, hard links and file capabilities.

    :raises ArchiveError: tar failed.
    """
    done = subprocess.run(
        [
            *("tar", "--create", "--file", layer, "--directory", rootfs, "--format=posix"),
            *("--numeric-owner", "--sort=name", "--xattrs"),
            *("--xattrs-include=security.capability", "--exclude=./dev/*", "."),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ArchiveError(f"Failed to archive {rootfs}: {done.stderr.strip()}")


def image_config(
    layer_digest: str,
    *,
    command: Sequence[str],
    environment: Mapping[str, str],
    architecture: str,
    tags: Sequence[str],
) -> tuple[bytes, bytes]:
    """Return the image's configuration and the archive's manifest.

    See https://github.com/moby/docker-image-spec/blob/main/spec.md
    """
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Cmd": list(command) or None,
                "Env": [f"{name}={value}" for name, value in environment.items()],
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "devcloud"}],
        },
        sort_keys=True,
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [
        {"Config": name, "RepoTags": list(tags) or None, "Layers": [f"{layer_digest}/layer.tar"]}
    ]
    return config, json.dumps(manifest).encode()


def build_archive(
    rootfs: Path,
    target: Path,
    *,
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    architecture: str | None = None,
    tags: Sequence[str] = (),
) -> None:
    """Write a root directory as an image of one layer, in ``docker save``'s format.

    :param rootfs: the guest's root directory; the archive omits the contents of its ``dev``.
    :param target: the archive, replaced atomically when the new one is complete.
    :param command: the image's command; empty for an image without a command.
    :param environment: the command's environment variables; None sets the usual PATH.
    :param architecture: Docker's name of the architecture; None means this machine's.
    :param tags: the image's names inside the archive.
    :raises ArchiveError: the root directory cannot be read.
    """
    if environment is None:
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        layer = Path(scratch) / "layer.tar"
        write_layer(rootfs, layer)
        digest = sha256_of(layer)
        config, manifest = image_config(
            digest,
            command=command,
            environment=environment,
            architecture=architecture or ARCHITECTURES[platform.machine()],
            tags=tags,
        )
        draft = Path(scratch) / "archive.tar"
        with tarfile.open(draft, "w") as archive:
            archive.add(layer, f"{digest}/layer.tar")
            add_bytes(archive, f"{hashlib.sha256(config).hexdigest()}.json", config)
            add_bytes(archive, "manifest.json", manifest)
        draft.replace(target)


def add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file with this content to an archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, BytesIO(content))
