# SPDX-License-Identifier: Apache-2.0
"""As root, these modules read and write layers in the Docker Engine's data root."""
