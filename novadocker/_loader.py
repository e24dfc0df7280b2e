# SPDX-License-Identifier: Apache-2.0
"""Serve ``nova.virt.docker``, the name that ``compute_driver = docker.DockerDriver`` resolves to.

Nova imports compute drivers below ``nova.virt`` only. ``novadocker-loader.pth`` imports this
module at interpreter start, in every layout that reads ``.pth`` files; it must stay cheap, so it
imports nothing but the standard library's import machinery.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence

ALIAS = "nova.virt.docker"
TARGET = "novadocker.virt.docker.driver"


class _AliasLoader(importlib.abc.Loader):
    def exec_module(self, module: types.ModuleType) -> None:
        driver = importlib.import_module(TARGET)
        module.DockerDriver = driver.DockerDriver  # type: ignore[attr-defined]


class AliasFinder(importlib.abc.MetaPathFinder):
    """Finds ``nova.virt.docker`` and nothing else."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for the alias, None for every other name."""
        if fullname != ALIAS:
            return None
        return importlib.machinery.ModuleSpec(fullname, _AliasLoader(), origin=__file__)


def install() -> None:
    """Put the finder on ``sys.meta_path`` once."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(AliasFinder())
