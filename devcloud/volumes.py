# SPDX-License-Identifier: Apache-2.0
"""Cinder: its programs, its tables and its volume types."""

from collections.abc import Iterable
from pathlib import Path

from openstack.connection import Connection

from devcloud import database, loop_devices
from devcloud.program import Program
from devcloud.settings import CHECKOUT, Settings

API_PORT = 8776

REPORTS = {"cinder-scheduler": "devcloud", "cinder-volume": "devcloud@loop"}
"""The host that each service behind the API reports, by the service's binary."""

TYPES: dict[str, dict[str, str]] = {"loop": {}, "multiattach": {"multiattach": "<is> True"}}
"""The extra specs of the volume types by name."""


def folder(settings: Settings) -> Path:
    """Return the directory of the volumes and of Cinder's state."""
    return settings.data / "cinder"


def config(settings: Settings) -> Path:
    """Return the path of Cinder's configuration."""
    return settings.etc / "cinder" / "cinder.conf"


def programs(settings: Settings) -> Iterable[Program]:
    """Return the services behind Cinder's API."""
    for name in ("cinder-scheduler", "cinder-volume"):
        yield Program(
            name,
            (f"{settings.bin}/{name}", "--config-file", str(config(settings))),
            (config(settings),),
            # Cinder loads the volume driver of this package.
            (("PYTHONPATH", str(CHECKOUT)),),
            stage="volume",
        )


def prepare(settings: Settings) -> None:
    """Attach the devices of volumes, which ``down`` or a restart of the machine detached."""
    for name in ("files", "devices", "conversion", "locks", "coordination"):
        (folder(settings) / name).mkdir(parents=True, exist_ok=True)
    for link in (folder(settings) / "devices").iterdir():
        device = loop_devices.attach(folder(settings) / "files" / link.name)
        link.unlink()
        link.symlink_to(device)


def ensure_tables(settings: Settings) -> None:
    """Create Cinder's database and its tables. Does nothing if they are complete."""
    made = settings.data / "volume-tables-made"
    if made.exists():
        return
    database.create_databases(settings, ("cinder",))
    manage = ("cinder-manage", "--config-file", str(config(settings)))
    database.manage(settings, "cinder tables", *manage, "db", "sync")
    made.touch()


def make_types(admin: Connection) -> None:
    """Create the missing volume types."""
    for name, specs in TYPES.items():
        if admin.block_storage.find_type(name) is None:
            admin.block_storage.create_type(name=name, extra_specs=specs)
