# SPDX-License-Identifier: Apache-2.0
"""One nova-compute for an engine: a second one would take the first one's servers for its own.

Nova removes from a host what was evacuated from there, if the driver lists it. Servers of another
nova-compute would be among that.
"""

import errno
import hashlib
import socket

from novadocker import exception


class EngineClaim:
    """Held by a nova-compute; goes with its process, however that ends.

    It is an abstract Unix socket (unix(7)): the kernel knows each name once in a network namespace.
    """

    def __init__(self) -> None:
        self._held: socket.socket | None = None

    def take(self, data_root: str) -> None:
        """Claim an engine; again is fine.

        :param data_root: the folder that the engine alone has
        :raises InvalidConfiguration: another nova-compute on this host has it
        """
        self.release()
        # a path may be longer than such a name
        name = hashlib.sha256(data_root.encode()).hexdigest()
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0novadocker-{name}")
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
            raise exception.InvalidConfiguration(
                reason=f"another nova-compute uses the engine with the data root {data_root}; "
                "each needs an engine of its own"
            ) from error
        self._held = claim

    def release(self) -> None:
        """Give the engine up; absent is fine."""
        if self._held is not None:
            self._held.close()
            self._held = None
