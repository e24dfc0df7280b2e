# SPDX-License-Identifier: Apache-2.0
"""Nova's own functional tests, with this driver in place of Nova's fake driver."""

import os

# Nova's tests read the variable when they are imported; nova-compute runs without eventlet too.
os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "true")
# In seconds; a test that hangs fails after this time.
os.environ.setdefault("OS_TEST_TIMEOUT", "300")
