# SPDX-License-Identifier: Apache-2.0
"""The connections of this host to volumes, by os-brick, which knows the protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nova import utils
from os_brick import exception as brick_exception
from os_brick.initiator import connector
from oslo_concurrency import processutils
from oslo_privsep import comm, daemon

from novadocker import exception
from novadocker.conf import CONF
from novadocker.virt.docker.volumes.volume import Volume

_FAILURES = (
    brick_exception.BrickException,
    processutils.ProcessExecutionError,
    comm.PrivsepTimeout,
    daemon.FailedToDropPrivileges,
    OSError,
    ValueError,
)


def connector_properties(host: str) -> dict[str, Any]:
    """Return what Cinder needs to know of this host, such as its initiator names."""
    found: dict[str, Any] = connector.get_connector_properties(
        utils.get_root_helper(),
        CONF.my_block_storage_ip,
        multipath=False,
        enforce_multipath=True,
        host=host,
    )
    return found


def connect(volume: Volume) -> Mapping[str, Any]:
    """Connect a volume to this host; return os-brick's description with its ``path``. Idempotent.

    :raises VolumeAttachFailed: os-brick cannot connect it
    """
    try:
        found: Mapping[str, Any] = _connector(volume).connect_volume(dict(volume.properties))
    except _FAILURES as error:
        raise exception.VolumeFailed(volume_id=volume.id, reason=str(error)) from error
    return found


def disconnect(volume: Volume) -> None:
    """Disconnect a volume from this host. Idempotent.

    :raises VolumeFailed: os-brick cannot disconnect it
    """
    try:
        _connector(volume).disconnect_volume(dict(volume.properties), None)
    except _FAILURES as error:
        raise exception.VolumeFailed(volume_id=volume.id, reason=str(error)) from error


def extend(volume: Volume) -> int:
    """Make the host see the new size of a volume; return the size in bytes.

    :raises VolumeFailed: os-brick cannot read the size
    """
    try:
        return int(_connector(volume).extend_volume(dict(volume.properties)))
    except _FAILURES as error:
        raise exception.VolumeFailed(volume_id=volume.id, reason=str(error)) from error


def _connector(volume: Volume) -> Any:
    # Ceph's connector would give QEMU a connection otherwise; the other connectors ignore it.
    return connector.InitiatorConnector.factory(
        volume.kind, utils.get_root_helper(), do_local_attach=True
    )
