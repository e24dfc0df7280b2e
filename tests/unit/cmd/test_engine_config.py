# SPDX-License-Identifier: Apache-2.0
"""The command ``novadocker-engine-config``."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from novadocker.cmd import engine_config
from tests import CHECKOUT

SAMPLE = CHECKOUT / "etc/docker/daemon.json"
OTHERS = {
    "runtimes": {"kata": {"runtimeType": "io.containerd.kata.v2"}},
    "storage-driver": "btrfs",
    "bridge": "br0",
    "live-restore": False,
}


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    path = tmp_path / "novadocker-runtime"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "docker" / "daemon.json"


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the data root of the machine's engine, which has no container."""
    path = tmp_path / "data-root"
    (path / "containers").mkdir(parents=True)
    monkeypatch.setattr(engine_config, "DATA_ROOT", path)
    return path


def run(file: Path, *words: object) -> int:
    return engine_config.main(["--file", str(file), *map(str, words)])


def test_a_new_file_is_the_sample() -> None:
    sample = json.loads(SAMPLE.read_text())
    shim = sample["runtimes"]["novadocker"]["path"]
    assert engine_config.merge(None, shim) == sample


def test_a_new_file_is_written_once(
    file: Path, shim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, "--shim", shim) == 0
    assert capsys.readouterr().out == f"changed {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    before = file.stat()
    assert run(file, "--shim", shim) == 0
    assert capsys.readouterr().out == f"{file} is unchanged\n"
    assert file.stat() == before


def test_what_the_file_has_is_kept(file: Path, shim: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps(OTHERS))
    file.chmod(0o600)
    assert run(file, "--shim", shim) == 0
    runtimes = {**OTHERS["runtimes"], "novadocker": {"path": str(shim)}}  # type: ignore[dict-item]
    assert json.loads(file.read_text()) == {**OTHERS, "live-restore": True, "runtimes": runtimes}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_a_link_stays_a_link(file: Path, shim: Path) -> None:
    file.parent.mkdir()
    target = file.with_name("managed.json")
    target.write_text("{}")
    file.symlink_to(target)
    assert run(file, "--shim", shim) == 0
    assert file.is_symlink()
    assert "novadocker" in json.loads(target.read_text())["runtimes"]


def test_the_runtime_is_removed_and_nothing_else(file: Path, shim: Path) -> None:
    assert run(file, "--remove") == 0
    assert not file.exists()
    file.parent.mkdir()
    file.write_text(json.dumps({**OTHERS, "live-restore": True}))
    before = file.read_text()
    run(file, "--shim", shim)
    assert run(file, "--remove") == 0
    assert json.loads(file.read_text()) == json.loads(before)
    assert engine_config.without(engine_config.merge({}, "/x")) == {"live-restore": True}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"runtimes": {}', "not valid JSON"),
        (b"{'live-restore': True}", "not valid JSON"),
        (b"[" * 100000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"runtimes": []}', "runtimes is not a JSON object"),
        (b'{"data-root": 7}', "data-root is not a string"),
        (b'{"bridge": "\xff"}', "not in UTF-8"),
    ],
)
def test_a_file_that_the_engine_does_not_accept_is_named_and_kept(
    file: Path, shim: Path, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    assert run(file, "--shim", shim) == 1
    assert reason in capsys.readouterr().err
    assert file.read_bytes() == content


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_file_is_no_file(file: Path, shim: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    assert run(file, "--shim", shim) == 0
    assert json.loads(file.read_text())["bridge"] == "none"


@pytest.mark.parametrize("shim", ["novadocker-runtime", "/no/such/file"])
def test_a_wrong_path_of_the_shim_is_refused(
    file: Path, shim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(file, "--shim", shim) == 1
    assert f"{shim} is not the absolute path" in capsys.readouterr().err
    assert not file.exists()


def test_the_shim_of_this_installation_is_found(
    file: Path, shim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_config.sys, "executable", str(shim.with_name("python")))
    assert run(file) == 0
    assert json.loads(file.read_text())["runtimes"]["novadocker"] == {"path": str(shim)}


def test_an_engine_that_is_a_snap_is_refused(
    tmp_path: Path,
    shim: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "daemon.json"
    monkeypatch.setattr(engine_config, "DAEMON_JSON", file)
    monkeypatch.setattr(engine_config, "SNAP", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert run(file, "--shim", shim) == 1
    assert "the engine is a snap" in capsys.readouterr().err
    assert not file.exists()


def test_containers_keep_their_networks_if_the_engine_has_no_configuration(
    file: Path, shim: Path, data_root: Path
) -> None:
    add_container(data_root, '{"Runtime": "runc"}')
    assert run(file, "--shim", shim) == 0
    runtimes = {"novadocker": {"path": str(shim)}}
    assert json.loads(file.read_text()) == {"live-restore": True, "runtimes": runtimes}


@pytest.mark.parametrize("below", ["", "100000.100000"])
@pytest.mark.parametrize("config", ['{"Runtime": "novadocker"}', "damaged", "[]"])
def test_a_runtime_that_servers_use_is_not_removed(
    file: Path,
    shim: Path,
    data_root: Path,
    capsys: pytest.CaptureFixture[str],
    config: str,
    below: str,
) -> None:
    assert run(file, "--shim", shim) == 0
    before = file.read_bytes()
    add_container(data_root / below, config)
    assert run(file, "--remove") == 1
    assert "servers of the engine use the runtime (1)" in capsys.readouterr().err
    assert file.read_bytes() == before


@pytest.mark.parametrize("below", ["", "100000.100000"])
def test_a_node_of_a_swarm_is_refused(
    file: Path, shim: Path, data_root: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such an engine ends at its next start with live-restore."""
    state = data_root / below / "swarm/docker-state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    assert run(file, "--shim", shim) == 1
    assert "the engine is a node of a swarm" in capsys.readouterr().err
    assert not file.exists()
    state.unlink()
    assert run(file, "--shim", shim) == 0


@pytest.mark.parametrize("dockerd", [True, False])
def test_the_runtime_stays_if_the_data_of_an_engine_is_not_found(
    file: Path,
    shim: Path,
    data_root: Path,
    dockerd: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(file, "--shim", shim) == 0
    (data_root / "containers").rmdir()
    monkeypatch.setattr(engine_config.shutil, "which", lambda _: "dockerd" if dockerd else None)
    assert run(file, "--remove") == int(dockerd)
    assert (f"{data_root} is not its data root" in capsys.readouterr().err) is dockerd
    assert ("runtimes" in json.loads(file.read_text())) is dockerd


@pytest.fixture
def asked(file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | None], None]:
    """Return a function that sets the answer of the engine that the file belongs to."""
    monkeypatch.setattr(engine_config, "DAEMON_JSON", file)

    def answer(content: bytes | None) -> None:
        monkeypatch.setattr(engine_config.host, "ask_engine", lambda *_: content)

    return answer


def test_the_running_engine_names_its_data_root(
    file: Path,
    shim: Path,
    tmp_path: Path,
    asked: Callable[[bytes | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command line of dockerd may name it, which no file tells."""
    elsewhere = tmp_path / "elsewhere"
    asked(json.dumps({"DockerRootDir": str(elsewhere)}).encode())
    add_container(elsewhere, '{"Runtime": "novadocker"}')
    assert run(file, "--shim", shim) == 0
    assert "bridge" not in json.loads(file.read_text())
    assert run(file, "--remove") == 1
    assert "servers of the engine use the runtime (1)" in capsys.readouterr().err


def test_an_engine_that_does_not_run_has_the_data_root_of_its_file(
    file: Path,
    shim: Path,
    tmp_path: Path,
    asked: Callable[[bytes | None], None],
) -> None:
    asked(None)
    file.parent.mkdir()
    file.write_text(json.dumps({"data-root": str(tmp_path / "elsewhere")}))
    assert run(file, "--shim", shim) == 0
    add_container(tmp_path / "elsewhere", '{"Runtime": "novadocker"}')
    assert run(file, "--remove") == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"DockerRootDir": 7}'])
def test_a_malformed_answer_of_the_engine_changes_nothing(
    file: Path, shim: Path, asked: Callable[[bytes | None], None], content: bytes
) -> None:
    asked(content)
    assert run(file, "--shim", shim) == 1
    assert not file.exists()


def add_container(data_root: Path, config: str) -> None:
    folder = data_root / "containers" / ("c" * 64)
    folder.mkdir(parents=True)
    (folder / "hostconfig.json").write_text(config)
