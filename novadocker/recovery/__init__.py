# SPDX-License-Identifier: Apache-2.0
"""Reading of servers from the Docker Engine's data root without the engine; imports no Nova."""
