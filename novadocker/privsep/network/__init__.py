# SPDX-License-Identifier: Apache-2.0
"""As root, these modules wire network namespaces, devices and queueing disciplines."""
