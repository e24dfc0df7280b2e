# SPDX-License-Identifier: Apache-2.0
"""The driver and the exporter exchange state by these files below Nova's ``state_path``."""
