# SPDX-License-Identifier: Apache-2.0
"""The driver and the exporter exchange state by these files, most in Nova's ``state_path``."""
