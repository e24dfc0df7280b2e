# SPDX-License-Identifier: Apache-2.0
"""These modules measure the servers of a host and serve the metrics to Prometheus."""
