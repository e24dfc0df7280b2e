# SPDX-License-Identifier: Apache-2.0
"""These modules wrap Linux interfaces that Python lacks; they import neither Nova nor Docker."""
