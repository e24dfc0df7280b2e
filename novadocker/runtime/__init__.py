# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime that the engine runs, a shell script."""
