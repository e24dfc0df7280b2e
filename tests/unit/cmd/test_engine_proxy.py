# SPDX-License-Identifier: Apache-2.0
"""The program on a socket that it inherits, as from systemd."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from novadocker.cmd import engine_proxy
from tests import CHECKOUT

_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
from novadocker.cmd import engine_proxy
engine_proxy.main(sys.argv[2:])
"""


def test_the_program_serves_the_socket_of_systemd(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "proxy"))
        listener.listen()
        command = [sys.executable, "-c", _START, str(listener.fileno()), "--device", "/dev/fuse"]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(tmp_path / "proxy"))
            client.sendall(b"GET /networks HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 403 ")
    finally:
        process.terminate()
        assert process.wait(60) == -15


@pytest.mark.parametrize("arguments", [[], ["--device", "sda"], ["--device", "/etc/passwd"]])
def test_a_wrong_start(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        engine_proxy.main(arguments)
    assert caught.value.code == 2
    assert "novadocker-engine-proxy" in capsys.readouterr().err
