# SPDX-License-Identifier: Apache-2.0
"""These modules pass only those requests to the Docker Engine that the driver makes."""
