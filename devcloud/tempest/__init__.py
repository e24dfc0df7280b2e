# SPDX-License-Identifier: Apache-2.0
"""``make tempest``: OpenStack's own tests against this cloud."""
