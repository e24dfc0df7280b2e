# SPDX-License-Identifier: Apache-2.0
"""The Glance images of snapshots during which nova-compute died.

nova-api creates the image before nova-compute uploads the data, so the image would stay ``queued``.
The token of the tenant is not kept, so the requests to Glance use ``[service_user]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """

    def __init__(self, glance: Glance, credentials: Callable[[], Any]) -> None:
        self._glance = glance
        self._credentials = credentials
        self._started = timeutils.utcnow(with_timezone=True)
        self._instances: list[objects.Instance] = []

    def add(self, instance: objects.Instance) -> None:
        """Let ``sweep`` delete the images of an instance's snapshots."""
        self._instances.append(instance)

    def sweep(self) -> None:
        """Delete the images. A refusal of Glance is logged and is final.

        :raises GlanceUnavailable: Glance or Keystone does not answer; the next call tries again
        """
        while self._instances:
            instance = self._instances[-1]
            try:
                for image_id in self._unfinished(instance):
                    self._delete(instance, image_id)
            except _NO_ANSWER as error:
                raise exception.GlanceUnavailable(reason=error) from error
            except _REFUSALS as error:
                LOG.warning(
                    "Failed to delete the image of the snapshot during which nova-compute died; "
                    "find it by 'openstack image list --status queued --project %s': %s",
                    instance.project_id,
                    error,
                    instance=instance,
                )
            self._instances.pop()

    def _unfinished(self, instance: objects.Instance) -> Iterator[str]:
        """Yield the ids of the images of an instance's snapshots that this process did not begin.

        The tenant may have begun another snapshot since this process started. Any tenant can create
        an image with the instance's UUID, so the owner is compared, too.
        """
        for status in _UNFINISHED:
            filters = {"status": status, "instance_uuid": instance.uuid}
            for image in self._glance.get_all(self._context(), filters=filters):
                if (
                    image["owner"] == instance.project_id
                    and image["status"] == status
                    and image["created_at"] < self._started
                ):
                    yield image["id"]

    def _delete(self, instance: objects.Instance, image_id: str) -> None:
        try:
            self._glance.delete(self._context(), image_id)
        except nova_exception.ImageNotFound:
            return
        LOG.info(
            "Deleted image %s of a snapshot during which nova-compute died",
            image_id,
            instance=instance,
        )

    def _context(self) -> nova_context.RequestContext:
        credentials = self._credentials()
        if credentials is None:
            raise nova_exception.Forbidden("[service_user] of nova-compute has no credentials")
        context = nova_context.get_admin_context()
        context.user_auth_plugin = credentials
        return context
