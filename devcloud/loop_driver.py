# SPDX-License-Identifier: Apache-2.0
"""A volume driver of Cinder for kernels without device mapper, iSCSI, NFS, NBD and RBD.

A volume is a sparse file. From its first attachment to its deletion, a loop device presents the
file to all compute hosts of the cloud, which share this machine's devices. While Nova resizes a
server, the volume has no connection for a moment, and the device must stay the same.

This driver is for tests only, because a server that can open a loop device can detach it, too.
"""

import contextlib
import subprocess
from pathlib import Path
from typing import Any

from cinder import interface
from cinder.image import image_utils
from cinder.volume import driver, volume_utils
from oslo_config import cfg

from devcloud import loop_devices

OPTIONS = [
    cfg.StrOpt("loop_folder", help="Directory of the volumes' files and of the devices' links."),
]


@interface.volumedriver
class LoopDriver(driver.VolumeDriver):
    """Volumes as sparse files on loop devices."""

    VERSION = "1.0.0"
    CI_WIKI_NAME = "none"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)
        self._folder = Path(self.configuration.loop_folder)

    def check_for_setup_error(self) -> None:
        """Create the directories of the files and of the links."""
        for path in (self._file("").parent, self._link("").parent):
            path.mkdir(parents=True, exist_ok=True)

    def _file(self, name: str) -> Path:
        """Return the path of the file of a volume or snapshot."""
        return self._folder / "files" / name

    def _link(self, name: str) -> Path:
        """Return the path of a link to a volume's device.

        Nova stores the path of the device. The number of the device changes when the machine
        restarts, so the path is that of a link.
        """
        return self._folder / "devices" / name

    def _update_volume_stats(self) -> None:
        self._stats = {
            "volume_backend_name": self.configuration.safe_get("volume_backend_name"),
            "vendor_name": "novadocker",
            "driver_version": self.VERSION,
            "storage_protocol": "local",
            "total_capacity_gb": "infinite",
            "free_capacity_gb": "infinite",
            "reserved_percentage": 0,
            "multiattach": True,
            "QoS_support": False,
        }

    def create_volume(self, volume: Any) -> None:
        """Create an empty volume."""
        with self._file(volume.name).open("xb") as file:
            file.truncate(volume.size << 30)

    def delete_volume(self, volume: Any) -> None:
        """Delete a volume. Idempotent."""
        self._link(volume.name).unlink(missing_ok=True)
        loop_devices.detach(self._file(volume.name))
        self._file(volume.name).unlink(missing_ok=True)

    def _copy(self, source: str, target: str, size: int) -> None:
        """Copy a file with its holes, and enlarge the copy to a size in GiB."""
        subprocess.run(
            ["cp", "--sparse=always", "--reflink=auto", self._file(source), self._file(target)],
            check=True,
            capture_output=True,
        )
        with self._file(target).open("r+b") as file:
            file.truncate(size << 30)

    def create_cloned_volume(self, volume: Any, src_vref: Any) -> None:
        """Create a volume with the content of another."""
        self._copy(src_vref.name, volume.name, volume.size)

    def create_snapshot(self, snapshot: Any) -> None:
        """Copy a volume's present content."""
        self._copy(snapshot.volume.name, snapshot.name, snapshot.volume.size)

    def delete_snapshot(self, snapshot: Any) -> None:
        """Delete a snapshot. Idempotent."""
        self._file(snapshot.name).unlink(missing_ok=True)

    def create_volume_from_snapshot(self, volume: Any, snapshot: Any) -> None:
        """Create a volume with the content of a snapshot."""
        self._copy(snapshot.name, volume.name, volume.size)

    def extend_volume(self, volume: Any, new_size: int) -> None:
        """Enlarge a volume to a size in GiB, and its device if it has one."""
        with self._file(volume.name).open("r+b") as file:
            file.truncate(new_size << 30)
        loop_devices.grow(self._file(volume.name))

    def copy_image_to_volume(
        self,
        context: Any,
        volume: Any,
        image_service: Any,
        image_id: str,
        disable_sparse: bool = False,
    ) -> None:
        """Write an image to a volume."""
        image_utils.fetch_to_raw(
            context,
            image_service,
            image_id,
            str(self._file(volume.name)),
            self.configuration.volume_dd_blocksize,
            size=volume.size,
            run_as_root=False,
            disable_sparse=disable_sparse,
        )
        self.extend_volume(volume, volume.size)

    def copy_volume_to_image(
        self, context: Any, volume: Any, image_service: Any, image_meta: Any
    ) -> None:
        """Upload a volume as an image."""
        volume_utils.upload_volume(
            context,
            image_service,
            image_meta,
            str(self._file(volume.name)),
            volume,
            run_as_root=False,
        )

    def ensure_export(self, context: Any, volume: Any) -> None:  # noqa: ARG002
        """Attach a volume's file to a loop device, and make the link to the device. Idempotent."""
        device = loop_devices.attach(self._file(volume.name))
        link = self._link(volume.name)
        with contextlib.suppress(FileNotFoundError):
            if link.readlink() == device:
                return
        made = link.with_suffix(".new")
        made.unlink(missing_ok=True)
        made.symlink_to(device)
        made.replace(link)

    def create_export(self, context: Any, volume: Any, connector: Any) -> None:  # noqa: ARG002
        """Make a volume's device for an attachment."""
        self.ensure_export(context, volume)

    def remove_export(self, context: Any, volume: Any) -> None:
        """Do nothing, because the device stays until the volume is deleted."""

    def initialize_connection(self, volume: Any, connector: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return what os-brick's connector of type local needs."""
        data = {"device_path": str(self._link(volume.name))}
        return {"driver_volume_type": "local", "data": data}

    def terminate_connection(self, volume: Any, connector: Any, **kwargs: Any) -> None:
        """Do nothing, because the device belongs to no single host."""
