# SPDX-License-Identifier: Apache-2.0
"""These modules describe the host and its resources to Nova and Placement."""
