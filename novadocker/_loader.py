# SPDX-License-Identifier: Apache-2.0
"""The import hook for ``nova.virt.docker``, where ``compute_driver = docker.DockerDriver`` points.

Nova imports compute drivers only from below ``nova.virt``. ``novadocker-loader.pth`` imports this
module at the start of every interpreter that reads ``.pth`` files, so the module must be cheap: it
imports only the standard library's import machinery.
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
    """The finder of the module ``nova.virt.docker``."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for ``ALIAS``; None for every other name."""
        if fullname != ALIAS:
            return None
        return importlib.machinery.ModuleSpec(fullname, _AliasLoader(), origin=__file__)


def install() -> None:
    """Append the finder to ``sys.meta_path``. Idempotent."""
    if not any(isinstance(finder, AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(AliasFinder())
