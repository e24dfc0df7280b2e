# SPDX-License-Identifier: Apache-2.0
"""Configuration of Sphinx; the contributor's guide describes how to build the pages."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "novadocker"
author = "novadocker developers"
release = metadata.version(project)
version = release

extensions = ["oslo_config.sphinxext", "reno.sphinxext", "support_matrix"]
exclude_patterns = ["_build", "build", "man"]
html_theme = "furo"
html_title = "novadocker"
html_show_copyright = False
html_show_sphinx = False
