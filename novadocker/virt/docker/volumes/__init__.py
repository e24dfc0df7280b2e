# SPDX-License-Identifier: Apache-2.0
"""This directory is the place for Cinder's volumes and Manila's shares; it is empty so far."""
