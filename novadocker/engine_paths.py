# SPDX-License-Identifier: Apache-2.0
"""Paths in the data root of the Docker Engine (moby/daemon, moby/layer, moby/volume/local).

Imports nothing of Nova and oslo, because ``novadocker.recovery`` works without them.
"""

from pathlib import Path

LAYER_ID = r"[0-9a-z]{25,64}"
"""Pattern of the storage driver's name of a layer; the engine's part of a container's has -init."""

SHORT_NAME = r"l/[0-9A-Z]{26}"
"""Pattern of a layer's short name of the storage driver overlay2, relative to its directory."""

VOLUME_NAME = r"[A-Za-z0-9][\w.-]+"
"""Pattern of the name of a volume."""

# An absolute path without spaces, such as operators give the data root.
_ROOT = r"/(?:[\w.-]+/)+"

IMAGE_LAYER_PATH = rf"{_ROOT}overlay2/{LAYER_ID}/diff"
"""Pattern of the path of the directory with the files of an image's layer, or of a container's."""

LAYER_PATH = rf"{_ROOT}overlay2/(?:{LAYER_ID}(?:-init)?/diff|{SHORT_NAME})"
"""As IMAGE_LAYER_PATH, also for the engine's own layer of a container, and by short names."""

SNAPSHOT_PATH = rf"{_ROOT}io\.containerd\.snapshotter\.v1\.overlayfs/snapshots/[0-9]+/fs"
"""Pattern of the path of the directory of a layer that containerd's image store has."""

MOUNTED_PATH = rf"{_ROOT}overlay2/(?:{LAYER_ID}(?:-init)?/(?:diff|work)|{SHORT_NAME})"
"""As LAYER_PATH, also for the directory ``work`` that overlayfs needs."""

VOLUME_PATH = rf"{_ROOT}volumes/{VOLUME_NAME}/_data"
"""Pattern of the path of the directory with the files of a volume."""


def containers(root: Path) -> Path:
    """Return the directory of the containers' metadata."""
    return root / "containers"


def container_config(root: Path, container: str) -> Path:
    """Return the file with the metadata of a container."""
    return containers(root) / container / "config.v2.json"


def swarm_state(root: Path) -> Path:
    """Return the file that exists while the engine is a node of a swarm (moby/daemon/cluster)."""
    return root / "swarm/docker-state.json"


def volumes(root: Path) -> Path:
    """Return the directory of the volumes."""
    return root / "volumes"


def volume_files(root: Path, name: str) -> Path:
    """Return the directory with the files of a volume."""
    return volumes(root) / name / "_data"


def images(root: Path, driver: str) -> Path:
    """Return the directory of a storage driver's images and layers."""
    return root / "image" / driver


def repositories(root: Path, driver: str) -> Path:
    """Return the file with the names of the images."""
    return images(root, driver) / "repositories.json"


def image_configs(root: Path, driver: str) -> Path:
    """Return the directory of the images' configurations."""
    return images(root, driver) / "imagedb/content/sha256"


def image_metadata(root: Path, driver: str) -> Path:
    """Return the directory of the engine's own data of images, such as their parents."""
    return images(root, driver) / "imagedb/metadata/sha256"


def image_config(root: Path, driver: str, digest: str) -> Path:
    """Return the file with the configuration of an image.

    :param digest: SHA-256 of the configuration, in hex
    """
    return image_configs(root, driver) / digest


def layer_record(root: Path, driver: str, chain: str) -> Path:
    """Return the directory of the engine's record of an image's layer.

    :param chain: SHA-256 of the layer and all below it, in hex:
        https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    """
    return images(root, driver) / "layerdb/sha256" / chain


def container_layer_record(root: Path, driver: str, container: str) -> Path:
    """Return the directory of the engine's record of a container's own layer."""
    return images(root, driver) / "layerdb/mounts" / container


def overlay(root: Path) -> Path:
    """Return the directory of the storage driver overlay2."""
    return root / "overlay2"


def overlay_files(root: Path, layer: str) -> Path:
    """Return the directory with the files of a layer of the storage driver overlay2."""
    return overlay(root) / layer / "diff"


def btrfs_subvolumes(root: Path) -> Path:
    """Return the directory of the layers of the storage driver btrfs."""
    return root / "btrfs/subvolumes"


def btrfs_quota(root: Path, layer: str) -> Path:
    """Return the file with the size of a layer of the storage driver btrfs, in bytes."""
    return root / "btrfs/quotas" / layer


def vfs_layers(root: Path) -> Path:
    """Return the directory of the layers of the storage driver vfs."""
    return root / "vfs/dir"
