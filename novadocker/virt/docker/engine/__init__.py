# SPDX-License-Identifier: Apache-2.0
"""These modules speak the Docker Engine's REST API; only they import the Docker SDK."""
