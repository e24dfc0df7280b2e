# SPDX-License-Identifier: Apache-2.0
"""The environment variables of a server's first process; pure.

The property ``docker_env_NAME`` of the image sets the variable NAME, and so does the server's
metadata with this key if the operator allows it. Both replace the image's own variable (ENV).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nova import objects, utils

from novadocker import exception

PREFIX = "docker_env_"

# Because the DMI name is the host's, cloud-init (tools/ds-identify, DataSourceOpenStack) finds
# OpenStack by this variable of the first process.
_OWN = {"product_name": "OpenStack Nova"}

# "container" is systemd's.
_RESERVED = {*_OWN, "container"}
# environ(7)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Nova cuts the value of an image property off after 255 bytes, perhaps within a character.
_LONGEST_VALUE = 250


def check(instance: objects.Instance, image_id: str, *, from_metadata: bool) -> None:
    """Refuse an instance whose image or metadata sets a variable that the driver can't set.

    :param from_metadata: True if the operator allows variables in a server's metadata
    :raises InvalidImage: a property of the image is wrong
    :raises StartFailed: an entry of the server's metadata is wrong, or not allowed
    """
    for name, value in _of_image(instance).items():
        if reason := _fault(name, value):
            raise exception.InvalidImage(
                image_id=image_id, reason=f"the property {PREFIX}{name[:64]} {reason}"
            )
    for name, value in _of_metadata(instance).items():
        reason = _fault(name, value) if from_metadata else "is not allowed in this cloud"
        if reason:
            raise exception.StartFailed(
                instance_uuid=instance.uuid,
                reason=f"The server's metadata {PREFIX}{name[:64]} {reason}",
            )


def variables(instance: objects.Instance, *, from_metadata: bool) -> dict[str, str]:
    """Return the variables of an instance; the metadata's replace the image's.

    Leaves wrong variables out, because a tenant can add one to the metadata after ``check``, and a
    move of the server must not fail for it.

    :param from_metadata: True if the operator allows variables in a server's metadata
    """
    chosen = _of_image(instance) | (_of_metadata(instance) if from_metadata else {})
    return {name: value for name, value in chosen.items() if not _fault(name, value)} | _OWN


def _fault(name: str, value: str) -> str:
    """Return what is wrong with a variable; empty if nothing is."""
    if not _NAME.fullmatch(name):
        return "does not name an environment variable"
    if name in _RESERVED:
        return "names an environment variable that the driver sets"
    if len(value.encode()) > _LONGEST_VALUE:
        return f"has a value of more than {_LONGEST_VALUE} bytes"
    if "\0" in value:
        return "has a value with a null character"
    return ""


def _of_image(instance: objects.Instance) -> dict[str, str]:
    return _with_prefix(instance.system_metadata, f"{utils.SM_IMAGE_PROP_PREFIX}{PREFIX}")


def _of_metadata(instance: objects.Instance) -> dict[str, str]:
    return _with_prefix(instance.metadata, PREFIX)


def _with_prefix(texts: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix): value for name, value in texts.items() if name.startswith(prefix)
    }
