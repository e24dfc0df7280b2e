# SPDX-License-Identifier: Apache-2.0
"""Everything is in setup.cfg, read by pbr."""

import setuptools

setuptools.setup(setup_requires=["pbr>=6.0.0"], pbr=True)
