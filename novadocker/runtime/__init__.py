# SPDX-License-Identifier: Apache-2.0
"""The Docker Engine calls ``novadocker-runtime`` of this directory in place of runc."""
