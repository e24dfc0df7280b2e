# SPDX-License-Identifier: Apache-2.0
"""The snapshot of an instance as a Glance image."""

from __future__ import annotations

from collections.abc import Callable

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import task_states

from novadocker import exception
from novadocker.virt.docker.operations.services import Services


class Snapshot:
    """Creates images of the instances of one host."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def create(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        image_id: str,
        update_task_state: Callable[..., None],
    ) -> None:
        """Create a Glance image of an instance. A running instance is frozen for a moment.

        :raises InstanceNotRunning: the instance's container does not exist
        :raises SnapshotFailed: no image could be created; its parts are deleted
        """
        try:
            found = self._services.find(instance)
        except exception.ContainerLost as error:
            raise nova_exception.InstanceNotRunning(instance_id=instance.uuid) from error
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        with self._services.images.snapshot(found) as image:
            update_task_state(
                task_state=task_states.IMAGE_UPLOADING,
                expected_state=task_states.IMAGE_PENDING_UPLOAD,
            )
            self._services.images.upload(context, image_id, image)
