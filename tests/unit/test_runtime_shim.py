# SPDX-License-Identifier: Apache-2.0
"""The runtime shim with a runc that only says what it was called with.

The shim's paths are those of the machine: a copy of it looks for records and namespaces below a
temporary folder.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import novadocker.runtime

SHIM = Path(novadocker.runtime.__file__).parent / "novadocker-runtime"
ID = "0123456789abcdef" * 4
UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"


class Shim:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.log = folder / "log.json"
        self.records = folder / "records"
        self.namespaces = folder / "netns"
        for made in (self.bundle, self.records, self.namespaces, folder / "bin"):
            made.mkdir()
        self.namespace = self.namespaces / f"nova-{UUID}"
        self.namespace.touch()
        (self.records / ID).write_text(f"{self.namespace}\n")
        runc = folder / "bin" / "runc"
        runc.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        runc.chmod(0o755)
        self.program = folder / "novadocker-runtime"
        text = SHIM.read_text()
        assert "/run/novadocker/containers" in text
        assert "/run/netns/nova-" in text
        text = text.replace("/run/novadocker/containers", str(self.records))
        self.program.write_text(text.replace("/run/netns/nova-", f"{self.namespaces}/nova-"))
        self.program.chmod(0o755)

    def write_config(self, **changes: Any) -> dict[str, Any]:
        config = {
            "ociVersion": "1.0.2",
            "process": {"env": ["PATH=/bin"], "args": ["sleep", "1d"]},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "pid"}]},
            **changes,
        }
        # the form that Go writes
        text = json.dumps(config, separators=(",", ":"), ensure_ascii=False)
        (self.bundle / "config.json").write_text(text)
        return config

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.bundle / "config.json").read_bytes())
        return found

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return subprocess.run(
            [self.program, *arguments],
            env={"PATH": path},
            cwd=self.bundle,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def create(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call it as containerd does."""
        return self.run(
            "--root", "/run/x", "--log", str(self.log), "--log-format", "json", "--systemd-cgroup",
            "create", *(arguments or ("--bundle", str(self.bundle), "--pid-file", "/p", ID)),
        )  # fmt: skip

    def refusal(self, result: subprocess.CompletedProcess[str]) -> str:
        """Return what the engine will show; runc was not run."""
        assert result.returncode == 1
        assert result.stdout == ""
        (line,) = self.log.read_text().splitlines()
        entry = json.loads(line)
        assert entry["level"] == "error"
        assert result.stderr == f"{entry['msg']}\n"
        message: str = entry["msg"]
        return message


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    found = Shim(tmp_path)
    found.write_config()
    return found


def joined(config: dict[str, Any], path: Path) -> dict[str, Any]:
    config["linux"]["namespaces"][1] = {"type": "network", "path": str(path)}
    return config


@pytest.mark.parametrize(
    "arguments",
    [
        ("--bundle", "{bundle}", "--pid-file", "/p", ID),
        ("--bundle={bundle}", ID),
        ("-b", "{bundle}", "--no-pivot", ID),
        ("--pid-file", "/p", "--console-socket", "/c", "--bundle", "{bundle}", ID),
        (ID,),
    ],
)
def test_create_joins_the_namespace(shim: Shim, arguments: tuple[str, ...]) -> None:
    wanted = joined(shim.write_config(), shim.namespace)
    called = [argument.format(bundle=shim.bundle) for argument in arguments]
    result = shim.create(*called)
    assert result.returncode == 0, result.stderr
    assert shim.config == wanted
    assert result.stdout.splitlines()[-len(called) :] == called
    assert not shim.log.exists()


@pytest.mark.parametrize("command", ["run", "restore"])
def test_other_ways_to_make_a_container_join_too(shim: Shim, command: str) -> None:
    assert shim.run("--root", "create", command, "--bundle", str(shim.bundle), ID).returncode == 0
    assert shim.config["linux"]["namespaces"][1]["path"] == str(shim.namespace)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--version",),
        ("--root", "create", "start", ID),
        ("--root", "/run/x", "exec", "--process", "/p", ID, "create"),
        ("delete", "--force", ID),
        ("kill", "--all", ID, "9"),
        ("features",),
        ("state", "a b", "", "$x"),
    ],
)
def test_any_other_command_is_runc(shim: Shim, arguments: tuple[str, ...]) -> None:
    before = shim.config
    (shim.records / ID).unlink()
    result = shim.run(*arguments)
    assert result.returncode == 0
    assert result.stdout == "".join(f"{argument}\n" for argument in arguments or [""])
    assert shim.config == before


TRICK = '{"type":"network"}'


@pytest.mark.parametrize(
    "process",
    [
        {"env": [f"X={TRICK}", TRICK], "args": [TRICK, "}" + TRICK, '\\"' + TRICK, "\\"]},
        {"env": ["X=" + "".join(map(chr, range(0x80, 0x250)))], "args": ["&", "|", "\\1", "'`$("]},
        {"env": ["X=" + "ж" * 30000], "args": ["\u2028\u0081\u0082\u0088"]},
    ],
)
def test_text_of_a_tenant_changes_nothing(shim: Shim, process: dict[str, Any]) -> None:
    wanted = joined(shim.write_config(process=process), shim.namespace)
    result = shim.create()
    assert result.returncode == 0, result.stderr
    assert shim.config == wanted


def test_no_record(shim: Shim) -> None:
    (shim.records / ID).unlink()
    message = shim.refusal(shim.create())
    assert message.startswith("novadocker: no network namespace is recorded for container 0123")


def test_empty_record(shim: Shim) -> None:
    (shim.records / ID).write_text("")
    assert "is recorded" in shim.refusal(shim.create())


def test_namespace_gone(shim: Shim) -> None:
    shim.namespace.unlink()
    message = shim.refusal(shim.create())
    assert message.startswith(f"novadocker: network namespace {shim.namespace} of container")
    assert "is gone" in message


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{folder}/nova-x", "{right}/../x", "{right}x", '"']
)
def test_record_of_something_else(shim: Shim, path: str) -> None:
    text = path.format(folder=shim.namespaces, right=shim.namespace)
    (shim.records / ID).write_text(f"{text}\n")
    assert "names no network namespace" in shim.refusal(shim.create())


@pytest.mark.parametrize("container_id", ["..", "x", ID[:-1], ID + "0", f"../records/{ID}", ""])
def test_id_of_no_container(shim: Shim, container_id: str) -> None:
    message = shim.refusal(shim.create("--bundle", str(shim.bundle), container_id))
    assert message == "novadocker: the container id is not one of the engine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linux": {"namespaces": [{"type": "mount"}]}}, "has no network namespace"),
        ({"linux": {"namespaces": [{"type": "network"}] * 2}}, "has two network namespaces"),
        ({"annotations": {"type": "network"}}, "has two network namespaces"),
        (
            {"linux": {"namespaces": [{"type": "network", "path": "/proc/1/ns/net"}]}},
            "has no network namespace",
        ),
    ],
)
def test_unexpected_configuration(shim: Shim, changes: dict[str, Any], message: str) -> None:
    before = shim.write_config(**changes)
    assert message in shim.refusal(shim.create())
    assert shim.config == before


def test_configuration_missing(shim: Shim) -> None:
    (shim.bundle / "config.json").unlink()
    result = shim.create()
    assert result.returncode == 1
    assert "can't be read" in json.loads(shim.log.read_text())["msg"]


@pytest.fixture
def root(shim: Shim) -> Path:
    """The root folder of a container for which a file was left."""
    root = shim.folder / "root"
    (root / "etc").mkdir(parents=True)
    shim.write_config(root={"path": str(root)})
    (shim.records / f"{ID}.etc").mkdir()
    (shim.records / f"{ID}.etc" / "hosts").write_text("ours")
    return root


def test_files_are_put_into_etc_once(shim: Shim, root: Path) -> None:
    (root / "etc" / "hosts").write_text("the image's")
    assert shim.create().returncode == 0
    assert (root / "etc" / "hosts").read_text() == "ours"
    (root / "etc" / "hosts").write_text("the tenant's")
    shim.write_config(root={"path": str(root)})
    assert shim.create().returncode == 0
    assert (root / "etc" / "hosts").read_text() == "the tenant's"


def test_files_in_an_image_without_etc(shim: Shim, root: Path) -> None:
    (root / "etc").rmdir()
    assert shim.create().returncode == 0
    assert (root / "etc" / "hosts").read_text() == "ours"


def test_files_never_follow_a_link_of_the_image(shim: Shim, root: Path) -> None:
    outside = shim.folder / "outside"
    outside.write_text("the host's")
    (root / "etc" / "hosts").symlink_to(outside)
    assert shim.create().returncode == 0
    assert outside.read_text() == "the host's"
    assert (root / "etc" / "hosts").read_text() == "ours"
    assert not (root / "etc" / "hosts").is_symlink()


@pytest.mark.parametrize("planted", ["link", "folder"])
def test_an_etc_that_cannot_take_them(shim: Shim, root: Path, planted: str) -> None:
    outside = shim.folder / "outside"
    outside.mkdir()
    if planted == "link":
        (root / "etc").rmdir()
        (root / "etc").symlink_to(outside)
    else:
        (root / "etc" / "hosts").mkdir()
    done = shim.create()
    assert done.returncode != 0
    assert "/etc" in done.stderr
    assert list(outside.iterdir()) == []


def test_text_of_a_tenant_is_not_taken_for_the_root(shim: Shim, root: Path) -> None:
    trick = '"root":{"path":"/elsewhere"'
    config = {"annotations": {trick: trick}, "root": {"path": str(root)}}
    shim.write_config(process={"args": [trick]}, **config)
    assert shim.create().returncode == 0
    assert (root / "etc" / "hosts").read_text() == "ours"
