# SPDX-License-Identifier: Apache-2.0
"""The privileged processes of ``novadocker-status``, and its advice, by a real sudo."""

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from nova import conf

from novadocker.cmd import checks, privileged, probes
from tests import CHECKOUT

NETWORK, INTERIOR, *_ = CONTEXTS = [context.pypath for context in privileged.CONTEXTS]
VOLUMES = privileged.VOLUMES.pypath
HELPER = str(Path(sys.executable).parent / "privsep-helper")
FILE = "/etc/nova/nova.conf"
SOCKET = "/tmp/tmp4z_x1/privsep.sock"


def arguments(context: str, *more: str) -> list[str]:
    return ["--config-file", FILE, "--privsep_context", context, "--privsep_sock_path", *more]


def advised() -> str:
    rule = checks.sudo_rule("nobody", HELPER, ["--config-file", FILE], CONTEXTS)
    assert rule
    return rule


def sample(name: str = "novadocker") -> str:
    """Return the sample file for the test's user and helper."""
    text = (CHECKOUT / "etc/sudoers.d" / name).read_text()
    return text.replace("nova ALL", "nobody ALL").replace("/usr/bin/privsep-helper", HELPER)


def allowed(rules: Path, *command: str) -> bool:
    """Return True if sudo allows the test's user a command by a file of rules alone.

    The file takes the place of ``/etc/sudoers`` in a mount namespace of its own.
    """
    script = 'mount --bind "$1" /etc/sudoers && shift && exec sudo -n -l -U nobody "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(rules), HELPER, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "mount" not in done.stderr
    return done.returncode == 0


@pytest.mark.skipif(not shutil.which("visudo"), reason="sudo is not installed")
@pytest.mark.parametrize(
    ("text", "contexts"),
    [
        (advised, CONTEXTS),
        (sample, CONTEXTS),
        (functools.partial(sample, "novadocker-volumes"), [VOLUMES]),
    ],
)
def test_sudo_allows_exactly_the_privileged_processes(
    tmp_path: Path, text: Callable[[], str], contexts: list[str]
) -> None:
    rules = tmp_path / "sudoers"
    rules.write_text(f"{text()}\n")
    rules.chmod(0o440)
    subprocess.run(["visudo", "--check", "--quiet", "--strict", "--file", rules], check=True)
    every = [*CONTEXTS, VOLUMES]
    assert [context for context in every if allowed(rules, *arguments(context, SOCKET))] == contexts
    refused = [
        arguments("os.system", SOCKET),
        arguments(NETWORK.replace(".", "x"), SOCKET),
        arguments(NETWORK, "/tmp/a --config-file /tmp/evil /tmp/b/privsep.sock"),
        arguments(NETWORK, "/tmp/a", "--config-file", "/tmp/evil.conf", SOCKET),
        arguments(NETWORK, SOCKET, "--privsep_context", "evil.context"),
        ["--config-file", "/tmp/evil.conf", *arguments(NETWORK, SOCKET)],
        [],
    ]
    assert [command for command in refused if allowed(rules, *command)] == []


@pytest.mark.parametrize("refused", ["", INTERIOR, CONTEXTS[-1], VOLUMES])
def test_each_privileged_process_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text(
        "#!/bin/sh\n"
        f'case " $* " in *" {refused or "none"} "*) echo "sudo: no" >&2; exit 1; esac\n'
        f'shift; exec {HELPER} "$@"\n'
    )
    sudo.chmod(0o755)
    conf.CONF([], project="nova", default_config_files=[])
    monkeypatch.setattr(probes.utils, "get_root_helper", lambda: str(sudo))
    call = probes.call_privileged(conf.CONF)
    failed = refused if refused != VOLUMES else ""
    assert (call.context, call.error) == (failed, "sudo: no" if failed else "")
    assert call.volumes_error == ("sudo: no" if refused == VOLUMES else "")
    result = checks.check_privileges(call, "etc")
    assert (f"privileged calls in context {failed} fail" in result.details) == bool(failed)
    assert ("volumes cannot be attached" in result.details) == (refused == VOLUMES)
