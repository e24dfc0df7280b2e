# SPDX-License-Identifier: Apache-2.0
"""These modules bring images from Glance and registries to the engine, and snapshots back."""
