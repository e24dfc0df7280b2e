# SPDX-License-Identifier: Apache-2.0
"""The list of transports."""

from typing import Any, cast

import pytest

from novadocker.virt.docker.migration import protocol
from novadocker.virt.docker.migration.transports import choice
from novadocker.virt.docker.migration.transports.direct import Direct
from novadocker.virt.docker.migration.transports.registry import ThroughRegistry

UUID = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    ("registry", "kind"), [("", Direct), ("registry.example.com/moves", ThroughRegistry)]
)
def test_the_options_choose(options: Any, registry: str, kind: type) -> None:
    options("docker", transfer_registry=registry)
    assert type(choice.choose(cast(Any, None), UUID)) is kind


def test_a_new_transport_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Carrier(Direct):
        pass

    monkeypatch.setattr(choice, "TRANSPORTS", (Carrier, *choice.TRANSPORTS))
    assert type(choice.choose(cast(Any, None), UUID)) is Carrier


def test_an_order_belongs_to_one_transport() -> None:
    """The receiving end finds the transport of an order by its key."""
    orders = [order for kind in choice.TRANSPORTS for order in kind.ORDERS]
    keys = [message.KEY for message in (*orders, protocol.Commit)]
    assert len(keys) == len(set(keys))


def test_the_transport_of_all_moves_is_configured_without_options() -> None:
    assert choice.TRANSPORTS[-1].is_configured()
