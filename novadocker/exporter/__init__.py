# SPDX-License-Identifier: Apache-2.0
"""The exporter of metrics and incidents of a host's instances; imports no Nova."""
