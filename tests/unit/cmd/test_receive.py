# SPDX-License-Identifier: Apache-2.0
"""The program that receives an instance asks Nova's conductor about it."""

import contextlib
import os
import sys
from typing import Any

import pytest
from nova import config
from nova.conductor import rpcapi
from nova.objects import base
from oslo_privsep import priv_context

from novadocker.cmd import receive
from novadocker.virt.docker.migration import expected


@pytest.mark.parametrize("kept", [True, False])
def test_what_nova_knows_bounds_the_move(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    asked: list[Any] = []
    conductor = object()

    def serve(*arguments: Any) -> bool:
        asked.extend(arguments)
        assert base.NovaObject.indirection_api is conductor
        return kept

    # Nova's hosts are distinguished by their configuration, which nova-compute finds by its name.
    monkeypatch.setattr(sys, "argv", ["novadocker-receive"])
    monkeypatch.setattr(config, "parse_args", lambda *_args, **_options: asked.extend(sys.argv))
    monkeypatch.setattr(rpcapi, "ConductorAPI", lambda: conductor)
    monkeypatch.setattr(priv_context, "init", lambda **_: None)
    monkeypatch.setattr(receive.Engine, "from_options", lambda _: "engine")
    monkeypatch.setattr(receive.receiver, "serve", serve)
    # The program writes its answers to standard output and reads standard input.
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(os, "fdopen", lambda *_args, **_options: None)
    monkeypatch.setattr(base.NovaObject, "indirection_api", None)
    assert receive.main(["--config-file", "a"]) == (0 if kept else 1)
    assert asked[:3] == ["nova-compute", "--config-file", "a"]
    assert asked[3] == "engine"
    assert asked[5] is expected.most_bytes


@pytest.mark.parametrize("error", [None, ValueError("malformed")])
def test_what_the_engine_still_unpacks_is_watched_to_the_end(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    steps: list[str] = []

    def serve(*_arguments: Any) -> bool:
        steps.append("serve")
        if error:
            raise error
        return False

    monkeypatch.setattr(sys, "argv", ["novadocker-receive"])
    monkeypatch.setattr(config, "parse_args", lambda *_args, **_options: None)
    monkeypatch.setattr(rpcapi, "ConductorAPI", object)
    monkeypatch.setattr(priv_context, "init", lambda **_: None)
    monkeypatch.setattr(receive.Engine, "from_options", lambda _: "engine")
    monkeypatch.setattr(receive.receiver, "serve", serve)
    monkeypatch.setattr(receive.aftermath, "wait", lambda: steps.append("wait"))
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(os, "fdopen", lambda *_args, **_options: None)
    monkeypatch.setattr(base.NovaObject, "indirection_api", None)
    with pytest.raises(ValueError, match="malformed") if error else contextlib.nullcontext():
        assert receive.main([]) == 1
    assert steps == ["serve", "wait"]
