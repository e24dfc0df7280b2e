# SPDX-License-Identifier: Apache-2.0
"""These modules read servers from the engine's data root without the engine and without Nova."""
