# SPDX-License-Identifier: Apache-2.0
"""Programs of the operator that use the cloud's APIs; no Nova, no engine."""
