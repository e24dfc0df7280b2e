# SPDX-License-Identifier: Apache-2.0
"""These modules are the transports of an instance's data to another host, one class each."""
