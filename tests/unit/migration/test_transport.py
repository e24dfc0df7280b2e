# SPDX-License-Identifier: Apache-2.0
"""The registry of transports."""

from typing import Any, cast

import pytest

from novadocker.virt.docker.migration import transport
from novadocker.virt.docker.migration.transport import Direct, ThroughRegistry

UUID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    ("registry", "kind"), [("", Direct), ("registry.example.com/moves", ThroughRegistry)]
)
def test_the_options_choose(options: Any, registry: str, kind: type) -> None:
    options("docker", transfer_registry=registry)
    assert type(transport.choose(cast(Any, None), UUID)) is kind


def test_a_new_transport_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Carrier(Direct):
        pass

    monkeypatch.setattr(transport, "TRANSPORTS", (Carrier, *transport.TRANSPORTS))
    assert type(transport.choose(cast(Any, None), UUID)) is Carrier


def test_the_transport_of_all_moves_is_configured_without_options() -> None:
    assert transport.TRANSPORTS[-1].is_configured()
