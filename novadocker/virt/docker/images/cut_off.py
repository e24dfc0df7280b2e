# SPDX-License-Identifier: Apache-2.0
"""The Glance images of snapshots during which nova-compute died.

nova-api creates the image before nova-compute uploads the data, so the image would stay ``queued``.
The token of the tenant is not kept, so the requests to Glance use ``[service_user]``. Each instance
has a file until its images are deleted, because nova-compute may die again before that, when Nova's
database does not have the snapshot any more.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from glanceclient import exc as glance_errors
from keystoneauth1 import exceptions as keystone_exceptions
from keystoneauth1 import loading
from nova import conf, objects
from nova import context as nova_context
from nova import exception as nova_exception
from oslo_log import log as logging
from oslo_utils import timeutils

from novadocker import exception
from novadocker.linux.files import replace_file

LOG = logging.getLogger(__name__)

_UNFINISHED = ("queued", "saving")
_NO_ANSWER = (
    nova_exception.GlanceConnectionFailed,
    keystone_exceptions.ConnectionError,
    keystone_exceptions.HttpServerError,
)
_REFUSALS = (
    nova_exception.NovaException,
    keystone_exceptions.ClientException,
    glance_errors.HTTPException,
)


class Glance(Protocol):
    """Nova's image API; ``nova.image.glance.API``."""

    def get_all(self, context: nova_context.RequestContext, **kwargs: Any) -> list[dict[str, Any]]:
        """Return images, without their data."""

    def delete(self, context: nova_context.RequestContext, id_or_uri: str) -> object:
        """Delete an image."""


def service_user() -> Any:
    """Return the credentials of ``[service_user]``; None if the group has none."""
    return loading.load_auth_from_conf_options(conf.CONF, conf.service_token.SERVICE_USER_GROUP)


class CutOffImages:
    """Deletes the unfinished images of the snapshots of instances.

    :param credentials: returns the credentials for Glance, or None
    :param folder: directory of the files of instances; it is created when it is needed
    """

    def __init__(self, glance: Glance, credentials: Callable[[], Any], folder: Path) -> None:
        self._glance = glance
        self._credentials = credentials
        self._folder = folder
        self._started = timeutils.utcnow(with_timezone=True)

    def add(self, instance: objects.Instance) -> None:
        """Let ``sweep``, also of a later nova-compute, delete the images of a server's snapshots.

        :raises OSError: the file of the instance cannot be written
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        record = {"project_id": instance.project_id, "started": self._started.isoformat()}
        content = json.dumps(record).encode()
        replace_file(self._folder / instance.uuid, content, mode=None, sync=True)

    def sweep(self) -> None:
        """Delete the images. A refusal of Glance is logged and is final.

        :raises GlanceUnavailable: Glance or Keystone does not answer; the next call tries again
        :raises OSError: the file of an instance cannot be read or deleted
        """
        for path in sorted(self._folder.glob("[!.]*")):
            record = json.loads(path.read_text())
            project_id, instance_uuid = record["project_id"], path.name
            started = datetime.datetime.fromisoformat(record["started"])
            try:
                for image_id in self._unfinished(instance_uuid, project_id, started):
                    self._delete(instance_uuid, image_id)
            except _NO_ANSWER as error:
                raise exception.GlanceUnavailable(reason=error) from error
            except _REFUSALS as error:
                LOG.warning(
                    "Failed to delete the image of the snapshot during which nova-compute died; "
                    "find it by 'openstack image list --status queued --project %s': %s",
                    project_id,
                    error,
                    instance_uuid=instance_uuid,
                )
            path.unlink()

    def _unfinished(
        self, instance_uuid: str, project_id: str, started: datetime.datetime
    ) -> Iterator[str]:
        """Yield the ids of the images of an instance's snapshots that were begun before a time.

        The tenant may have begun another snapshot since then, perhaps on another host. Any tenant
        can create an image with the instance's UUID, so the owner is compared, too.
        """
        for status in _UNFINISHED:
            filters = {"status": status, "instance_uuid": instance_uuid}
            for image in self._glance.get_all(self._context(), filters=filters):
                if (
                    image["owner"] == project_id
                    and image["status"] == status
                    and image["created_at"] < started
                ):
                    yield image["id"]

    def _delete(self, instance_uuid: str, image_id: str) -> None:
        try:
            self._glance.delete(self._context(), image_id)
        except nova_exception.ImageNotFound:
            return
        LOG.info(
            "Deleted image %s of a snapshot during which nova-compute died",
            image_id,
            instance_uuid=instance_uuid,
        )

    def _context(self) -> nova_context.RequestContext:
        credentials = self._credentials()
        if credentials is None:
            raise nova_exception.Forbidden("[service_user] of nova-compute has no credentials")
        context = nova_context.get_admin_context()
        context.user_auth_plugin = credentials
        return context
