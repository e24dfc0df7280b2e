# SPDX-License-Identifier: Apache-2.0
"""``novadocker-image``: inspects, flattens, converts and uploads image archives."""

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openstack

from novadocker import naming
from novadocker.actions import cloud
from novadocker.linux.files import replacement
from novadocker.recovery import progress
from novadocker.virt.docker.images import archive, writer
from novadocker.virt.docker.images import squash as images_squash
from novadocker.virt.docker.images.archive import ArchivedImage
from novadocker.virt.docker.images.platforms import any_variant
from novadocker.virt.docker.images.regions import ArchiveError, Region

_WRITERS = {"docker": writer.docker_archive, "oci": writer.oci_archive}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return 0, or print the error on stderr and return 1."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder)
    try:
        with contextlib.ExitStack() as files:
            file = files.enter_context(options.archive.open("rb"))
            region = Region(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            wanted = any_variant(options.architecture)
            image = files.enter_context(archive.open_image(region, wanted, folder))
            for _ in _shown("checking", writer.docker_archive(image), image):
                pass

            def new_file() -> int:
                return files.enter_context(tempfile.TemporaryFile(dir=folder)).fileno()

            options.run(options, image, new_file)
    except (ArchiveError, OSError, *cloud.ERRORS) as error:
        print(f"novadocker-image: {options.archive}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="novadocker-image",
        description="Works with archives of docker save and OCI image layouts of one image.",
    )
    parser.add_argument(
        "--architecture",
        default=naming.docker_architecture(platform.machine()),
        help="architecture of the image, by Docker's name (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        default=tempfile.gettempdir(),
        help="directory for decompressed layers (default: %(default)s)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("archive", type=Path)
        command.set_defaults(run=run)
        return command

    add("inspect", _inspect, "Check an archive and print its layers and configuration.")
    squash = add("flatten", _flatten, "Write an archive whose upper layers are merged into one.")
    squash.add_argument("target", type=Path)
    squash.add_argument(
        "--keep", type=int, default=0, metavar="N", help="keep the lowest N layers unchanged"
    )
    squash.add_argument("--to", choices=_WRITERS, default="docker")
    convert = add("convert", _convert, "Write an archive in another format.")
    convert.add_argument("target", type=Path)
    convert.add_argument("--to", choices=_WRITERS, required=True)
    push = add("push", _push, "Check an archive and upload it to Glance of the cloud in OS_CLOUD.")
    push.add_argument("name")
    push.add_argument(
        "--property",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="property of the Glance image",
    )
    return parser


def _inspect(_options: argparse.Namespace, image: ArchivedImage, _new_file: Any) -> None:
    config = json.loads(image.config)
    found = {
        "id": f"sha256:{image.digest}",
        "platform": f"{config['os']}/{config['architecture']}",
        "bytes": sum(layer.content.size for layer in image.layers),
        "layers": [
            {"digest": f"sha256:{layer.digest}", "bytes": layer.content.size}
            for layer in image.layers
        ],
        "config": config.get("config") or {},
    }
    print(json.dumps(found, indent=2))


def _flatten(options: argparse.Namespace, image: ArchivedImage, new_file: Any) -> None:
    if not 0 <= options.keep < len(image.layers):
        raise ArchiveError(f"--keep must be less than the number of layers, {len(image.layers)}")
    _write(options, images_squash.squash(image, options.keep, new_file))


def _convert(options: argparse.Namespace, image: ArchivedImage, _new_file: Any) -> None:
    _write(options, image)


def _write(options: argparse.Namespace, image: ArchivedImage) -> None:
    with replacement(options.target, mode=None, sync=False) as output:
        for chunk in _shown("writing", _WRITERS[options.to](image), image):
            output.write(chunk)


def _push(options: argparse.Namespace, _image: ArchivedImage, _new_file: Any) -> None:
    properties = {}
    for text in options.property:
        name, equals, value = text.partition("=")
        if not equals:
            raise ArchiveError(f"--property {text!r} is not NAME=VALUE")
        properties[name] = value
    with openstack.connect() as connection, _ShownFile(options.archive, "uploading") as data:
        made = connection.image.create_image(
            options.name,
            data=data,
            container_format="docker",
            disk_format="raw",
            allow_duplicates=True,
            wait=True,
            **properties,
        )
    print(made.id)


class _ShownFile(io.FileIO):
    """A file that shows the progress of its reading."""

    def __init__(self, path: Path, verb: str) -> None:
        super().__init__(path)
        self._bar = progress.Bar(path.stat().st_size, verb)

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._bar.add(len(found))
        return found

    def close(self) -> None:
        if not self.closed:
            self._bar.end()
        super().close()


def _shown(verb: str, chunks: Iterable[bytes], image: ArchivedImage) -> Iterator[bytes]:
    """Yield the chunks of an image's archive and show their progress."""
    size = sum(layer.content.size for layer in image.layers)
    return progress.shown(chunks, progress.Bar(size, verb))
