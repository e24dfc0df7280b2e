# SPDX-License-Identifier: Apache-2.0
"""Nova's own functional tests, with our driver in the place of its fake one."""

import os

# read where Nova's tests are imported; nova-compute runs without eventlet, too
os.environ.setdefault("OS_NOVA_DISABLE_EVENTLET_PATCHING", "true")
# seconds; a test that hangs has failed
os.environ.setdefault("OS_TEST_TIMEOUT", "300")
