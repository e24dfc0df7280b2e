# SPDX-License-Identifier: Apache-2.0
"""The number of builds that failed one after the other for a reason of this host.

Nova's resource tracker counts each failed build, and Nova's ``BuildFailureWeigher`` then prefers
other hosts for all tenants. The driver reports this number in place of Nova's, because Nova has no
exception for a build that failed for a reason of the tenant, such as a bad image.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from novadocker import exception


class BuildFailures:
    """The number; safe to share between threads.

    :ivar count: the failed builds since the last build that succeeded
    """

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the build that ends in the block; ``prepared`` if it does not succeed."""
        with self.prepared():
            yield
        with self._lock:
            self.count = 0

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Count the build if the block fails for a reason of this host."""
        try:
            yield
        except (*exception.REQUEST_FAULTS, *exception.DELETED):
            raise
        except BaseException:
            with self._lock:
                self.count += 1
            raise
