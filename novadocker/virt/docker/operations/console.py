# SPDX-License-Identifier: Apache-2.0
"""The console log and the serial console of an instance."""

from __future__ import annotations

from nova import exception as nova_exception
from nova import objects
from nova.console import type as console_type

from novadocker import exception
from novadocker.conf import CONF
from novadocker.virt.docker.operations.services import Services

# Nova's other drivers return as many bytes (MAX_CONSOLE_BYTES).
_LOG_BYTES = 100 * 1024
_LOG_SECONDS = 15


class Console:
    """Reads console logs and opens serial consoles."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def read_log(self, instance: objects.Instance) -> str:
        """Return the end of the instance's console log, one character for each byte.

        :raises ConsoleNotAvailable: an operation on the instance hangs in the engine; Nova's API
            answers with the text, and Nova's manager logs no traceback
        """
        try:
            # Nova's API waits for an answer as long as the engine's requests may last.
            with self._services.engine.within(_LOG_SECONDS):
                found = self._services.look_up(instance)
                output = self._services.engine.read_console(found.id, _LOG_BYTES)
        except exception.ContainerHangs as error:
            raise nova_exception.ConsoleNotAvailable(
                f"The console log of instance {instance.uuid} cannot be read, because an operation "
                "on its container hangs in the Docker engine of its host."
            ) from error
        # Nova's manager encodes the text as latin-1, too.
        return output.decode("latin-1")

    def open_serial(self, instance: objects.Instance) -> console_type.ConsoleSerial:
        """Open the instance's serial console to nova-serialproxy. Idempotent.

        :raises InstanceNotReady: the instance does not run
        """
        found = self._services.look_up(instance)
        if not found.pid:
            raise nova_exception.InstanceNotReady(instance_id=instance.uuid)
        kind = instance.system_metadata.get("image_os_console")
        opener = self._services.open_terminal(found.id, kind)
        port = self._services.consoles.open(instance.uuid, found.id, opener)
        return console_type.ConsoleSerial(CONF.serial_console.proxyclient_address, port)
