# SPDX-License-Identifier: Apache-2.0
"""A fake of Nova's image API, with the methods that the driver calls."""

import hashlib
from pathlib import Path
from typing import IO, Any

from nova import exception as nova_exception
from nova import objects

# The signatures below name Nova's objects.
objects.register_all()


def image_record(image_id: str, content: bytes) -> dict[str, object]:
    """Return an active image as Glance's API describes it."""
    return {
        "id": image_id,
        "name": "web",
        "status": "active",
        "visibility": "public",
        "container_format": "docker",
        "disk_format": "raw",
        "size": len(content),
        "checksum": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(content).hexdigest(),
        "owner": "p1",
        "min_disk": 0,
        "min_ram": 0,
        "protected": False,
        "tags": [],
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "schema": "/v2/schemas/image",
    }


class FakeGlance:
    """Images as files in a directory, which processes share, with a count of downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, dict[str, Any]] = {}
        # The maximum size of an upload in bytes.
        self.room: int | None = None
        self._log = folder / "downloads"
        self._log.touch()

    def add(self, image_id: str, content: bytes | Path, **changes: Any) -> objects.ImageMeta:
        """Upload an image; return the metadata that Nova passes to the driver."""
        path = self.folder / image_id
        if isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
            file.seek(0)
            sha512 = hashlib.file_digest(file, "sha512").hexdigest()
        self.records[image_id] = {
            "id": image_id,
            "container_format": "docker",
            "disk_format": "raw",
            "checksum": md5,
            "os_hash_algo": "sha512",
            "os_hash_value": sha512,
            "properties": {},
            **changes,
        }
        return self.meta(image_id)

    def meta(self, image_id: str) -> objects.ImageMeta:
        names = ("id", "container_format", "disk_format", "checksum", "properties")
        return objects.ImageMeta.from_dict({n: self.records[image_id][n] for n in names})

    @property
    def downloads(self) -> list[str]:
        """The ids of all downloaded images, in order."""
        return self._log.read_text().split()

    def get(self, context: object, image_id: str) -> dict[str, Any]:
        if image_id not in self.records:
            raise nova_exception.ImageNotFound(image_id=image_id)
        return dict(self.records[image_id])

    def download(
        self, context: object, image_id: str, data: IO[bytes], trusted_certs: object = None
    ) -> None:
        with self._log.open("a") as log:
            log.write(f"{image_id}\n")
        with (self.folder / image_id).open("rb") as file:
            while chunk := file.read(65536):
                data.write(chunk)

    def update(
        self,
        context: object,
        image_id: str,
        image: dict[str, Any],
        data: IO[bytes],
        purge_props: bool = False,
    ) -> dict[str, Any]:
        path = self.folder / image_id
        with path.open("wb") as file:
            while chunk := data.read(65536):
                file.write(chunk)
                if self.room is not None and file.tell() > self.room:
                    raise nova_exception.ImageQuotaExceeded(image_id=image_id)
        content = path.read_bytes()
        path.unlink()
        self.add(image_id, content, **image)
        self.records[image_id]["size"] = len(content)
        return self.get(context, image_id)

    def delete(self, context: object, image_id: str) -> None:
        self.records.pop(image_id, None)
