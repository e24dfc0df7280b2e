# SPDX-License-Identifier: Apache-2.0
"""The claim of an engine by one nova-compute.

After an evacuation, Nova deletes on the former host the instances that the driver lists there. If
two nova-computes used one engine, each would list, and could delete, the instances of the other.
"""

import errno
import hashlib
import socket

from novadocker import exception


class EngineClaim:
    """A claim that ends at the latest with the process that holds it.

    It is an abstract Unix socket (unix(7)), whose name is unique in a network namespace.
    """

    def __init__(self) -> None:
        self._held: socket.socket | None = None

    def take(self, data_root: str) -> None:
        """Claim an engine. Idempotent.

        :param data_root: the engine's data root, which no other engine uses
        :raises InvalidConfiguration: another nova-compute on this host holds the claim
        """
        self.release()
        # The hash of the path, because a path may be longer than the name of a socket.
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
                "each nova-compute needs its own engine"
            ) from error
        self._held = claim

    def release(self) -> None:
        """Release the claim. Does nothing if there is none."""
        if self._held is not None:
            self._held.close()
            self._held = None
