# SPDX-License-Identifier: Apache-2.0
"""What Linux offers and Python has no function for; imports neither Nova nor the engine."""
