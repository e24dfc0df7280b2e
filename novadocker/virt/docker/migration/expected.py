# SPDX-License-Identifier: Apache-2.0
"""Nova's records of the instance that another host sends to this host.

``novadocker-receive`` asks Nova's conductor for them, because it does not trust what the other host
says of the instance.
"""

import threading
from concurrent import futures

import oslo_messaging
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import task_states
from oslo_utils import units

from novadocker.conf import CONF

# Less than the source waits for the answer to its greeting. oslo.messaging itself tries for ever to
# connect to its broker.
_SECONDS = 60.0


def most_bytes(instance_uuid: str) -> int:
    """Return the bytes that an instance may bring to this host: the root disk of its new flavor.

    :returns: 0 if the flavor has no bound
    :raises ValueError: Nova does not move the instance to this host, or does not answer
    """
    answer: futures.Future[int] = futures.Future()
    threading.Thread(target=_answer, args=(instance_uuid, answer), daemon=True).start()
    try:
        return answer.result(_SECONDS)
    except TimeoutError as error:
        raise ValueError("its Nova does not answer") from error
    except (nova_exception.NovaException, oslo_messaging.MessagingException) as error:
        raise ValueError(f"its Nova does not tell about the server: {error}") from error


def _answer(instance_uuid: str, answer: "futures.Future[int]") -> None:
    try:
        answer.set_result(read_most_bytes(instance_uuid, CONF.host))
    except Exception as error:  # noqa: BLE001 (the waiting thread raises it)
        answer.set_exception(error)


def read_most_bytes(instance_uuid: str, host: str) -> int:
    """Return what ``most_bytes`` returns, for a move to a host.

    :raises ValueError: Nova does not move the instance to the host
    """
    context = nova_context.get_admin_context()
    instance = objects.Instance.get_by_uuid(
        context, instance_uuid, expected_attrs=["flavor", "migration_context"]
    )
    move = instance.migration_context
    if move is None or instance.task_state != task_states.RESIZE_MIGRATING:
        raise ValueError("Nova does not move the server")
    migration = objects.Migration.get_by_id_and_instance(context, move.migration_id, instance_uuid)
    if migration.dest_compute != host:
        raise ValueError("Nova moves the server to another host")
    return int(instance.new_flavor.root_gb * units.Gi)
