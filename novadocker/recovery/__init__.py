# SPDX-License-Identifier: Apache-2.0
"""Reads servers from the Docker Engine's data root without the engine; imports no Nova."""
