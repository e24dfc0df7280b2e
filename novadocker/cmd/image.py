# SPDX-License-Identifier: Apache-2.0
"""``novadocker-image``: look into image archives, flatten and convert them, upload them."""

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

from novadocker.actions import cloud
from novadocker.virt.docker.images import archive, writer
from novadocker.virt.docker.images import squash as images_squash
from novadocker.virt.docker.images.archive import ArchivedImage
from novadocker.virt.docker.images.regions import ArchiveError, Region

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_WRITERS = {"docker": writer.docker_archive, "oci": writer.oci_archive}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with the reason on stderr."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder)
    try:
        with contextlib.ExitStack() as files:
            file = files.enter_context(options.archive.open("rb"))
            region = Region(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            image = files.enter_context(archive.open_image(region, options.architecture, folder))
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
        description="Archives of docker save and OCI image layouts, each with one image.",
    )
    parser.add_argument(
        "--architecture",
        default=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        help="of the image that is meant, by Docker's name; this machine's by default",
    )
    parser.add_argument(
        "--folder", default=tempfile.gettempdir(), help="where to unpack what is compressed"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("archive", type=Path)
        command.set_defaults(run=run)
        return command

    add("inspect", _inspect, "Check an archive and print what a server of it would be.")
    squash = add("flatten", _flatten, "Write an archive whose upper layers are one.")
    squash.add_argument("target", type=Path)
    squash.add_argument(
        "--keep", type=int, default=0, metavar="N", help="leave the lowest N layers as they are"
    )
    squash.add_argument("--to", choices=_WRITERS, default="docker")
    convert = add("convert", _convert, "Write an archive in another format.")
    convert.add_argument("target", type=Path)
    convert.add_argument("--to", choices=_WRITERS, required=True)
    push = add("push", _push, "Check an archive and upload it to Glance, by the cloud in OS_CLOUD.")
    push.add_argument("name")
    push.add_argument(
        "--property", action="append", default=[], metavar="NAME=VALUE", help="of the Glance image"
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
        raise ArchiveError(f"it has {len(image.layers)} layers: --keep must be less")
    _write(options, images_squash.squash(image, options.keep, new_file))


def _convert(options: argparse.Namespace, image: ArchivedImage, _new_file: Any) -> None:
    _write(options, image)


def _write(options: argparse.Namespace, image: ArchivedImage) -> None:
    temporary = options.target.with_name(f".{options.target.name}.new")
    try:
        with temporary.open("wb") as output:
            for chunk in _shown("writing", _WRITERS[options.to](image), image):
                output.write(chunk)
        temporary.rename(options.target)
    finally:
        temporary.unlink(missing_ok=True)


def _push(options: argparse.Namespace, _image: ArchivedImage, _new_file: Any) -> None:
    properties = {}
    for text in options.property:
        name, equals, value = text.partition("=")
        if not equals:
            raise ArchiveError(f"the property {text!r} has no equals sign")
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


class _Progress:
    """Shows how far long work is, on stderr if that is a terminal.

    :param verb: what is being done
    :param size: the bytes of all of it
    """

    def __init__(self, verb: str, size: int) -> None:
        self._verb, self._size = verb, size
        self._done, self._shown = 0, -1

    def add(self, done: int) -> None:
        """Say that so many bytes more are done."""
        self._done += done
        percent = min(100 * self._done // max(self._size, 1), 100)
        if percent != self._shown and sys.stderr.isatty():
            self._shown = percent
            bar = "#" * (percent // 4)
            print(
                f"\r{self._verb} [{bar:<25}] {percent:3} % of {self._size >> 20} MiB",
                end="\n" if percent == 100 else "",
                file=sys.stderr,
                flush=True,
            )


class _ShownFile(io.FileIO):
    """A file that shows how far it is read."""

    def __init__(self, path: Path, verb: str) -> None:
        super().__init__(path)
        self._progress = _Progress(verb, path.stat().st_size)

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._progress.add(len(found))
        return found


def _shown(verb: str, chunks: Iterable[bytes], image: ArchivedImage) -> Iterator[bytes]:
    """Pass an image's pieces on, and show how many."""
    progress = _Progress(verb, sum(layer.content.size for layer in image.layers))
    for chunk in chunks:
        yield chunk
        progress.add(len(chunk))
