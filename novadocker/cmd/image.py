# SPDX-License-Identifier: Apache-2.0
"""``novadocker-image``: look into image archives, flatten and convert them, upload them."""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openstack

from novadocker.virt.docker import archive, flatten, packing
from novadocker.virt.docker.archive import ArchivedImage
from novadocker.virt.docker.compression import ArchiveError, Region

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_WRITERS = {"docker": packing.docker_archive, "oci": packing.oci_archive}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with the reason on stderr."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder)
    try:
        with contextlib.ExitStack() as files:
            file = files.enter_context(options.archive.open("rb"))
            region = Region(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            image = files.enter_context(archive.open_image(region, options.architecture, folder))
            packing.verify(image)

            def new_file() -> int:
                return files.enter_context(tempfile.TemporaryFile(dir=folder)).fileno()

            options.run(options, image, new_file)
    except (ArchiveError, OSError, openstack.exceptions.SDKException) as error:
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
    _write(options, flatten.squash(image, options.keep, new_file))


def _convert(options: argparse.Namespace, image: ArchivedImage, _new_file: Any) -> None:
    _write(options, image)


def _write(options: argparse.Namespace, image: ArchivedImage) -> None:
    size = sum(layer.content.size for layer in image.layers)
    temporary = options.target.with_name(f".{options.target.name}.new")
    try:
        with temporary.open("wb") as output:
            for chunk in _shown(_WRITERS[options.to](image), size):
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
    with openstack.connect() as cloud:
        made = cloud.image.create_image(
            options.name,
            filename=str(options.archive),
            container_format="docker",
            disk_format="raw",
            allow_duplicates=True,
            wait=True,
            **properties,
        )
    print(made.id)


def _shown(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Pass pieces on, with the progress on stderr if that is a terminal."""
    done, shown = 0, -1
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        percent = min(100 * done // max(size, 1), 100)
        if percent != shown and sys.stderr.isatty():
            shown = percent
            print(f"\r{percent:3} % of {size >> 20} MiB", end="", file=sys.stderr, flush=True)
    if shown >= 0:
        print(file=sys.stderr)
