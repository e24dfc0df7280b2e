# SPDX-License-Identifier: Apache-2.0
"""These modules derive limits from flavor and image, and hold a running server to them."""
