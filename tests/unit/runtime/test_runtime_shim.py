# SPDX-License-Identifier: Apache-2.0
"""The runtime shim with a runc that only records its arguments.

The shim's paths are absolute, so the tests use a copy of it with paths below a temporary directory.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from novadocker.runtime import create, record, tree
from tests import CHECKOUT
from tests.unit.runtime.test_accounts import SHADOWS

PACKAGE = CHECKOUT / "novadocker"
ID = "0123456789abcdef" * 4
UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"


DEVICE = {"path": "/dev/vdb", "source": "/dev/x", "major": 7, "minor": 1, "writable": True}
MALFORMED_DEVICES: list[tuple[object, str]] = [
    ({}, "has malformed devices"),
    ([5], "has malformed devices"),
    ([{}], "has malformed devices"),
    ([{**DEVICE, "more": 1}], "has malformed devices"),
    ([{**DEVICE, "path": "/dev/../x"}], "has malformed devices"),
    ([{**DEVICE, "path": "/dev/null"}], "has malformed devices"),
    ([{**DEVICE, "source": "/dev/../etc/x"}], "has malformed devices"),
    ([{**DEVICE, "source": "/etc/x"}], "has malformed devices"),
    ([{**DEVICE, "major": "7"}], "has malformed devices"),
    ([{**DEVICE, "minor": -1}], "has malformed devices"),
    ([{**DEVICE, "writable": 1}], "has malformed devices"),
    ([{**DEVICE, "rates": []}], "has malformed devices"),
    ([{**DEVICE, "rates": {"weight": 5}}], "has malformed devices"),
    ([{**DEVICE, "rates": {"read_iops": -5}}], "has malformed devices"),
    ([DEVICE] * 2, "has two devices at one path"),
    ([{**DEVICE, "path": f"/dev/vd{letter}"} for letter in "bcde"] * 30, "has malformed devices"),
]


class Shim:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.log = folder / "log.json"
        self.records = folder / "records"
        self.namespaces = folder / "netns"
        self.users = folder / "users"
        self.disks = folder / "disks"
        self.block = self.disks / f"nova-{UUID}" / "block"
        self.rootfs = folder / "rootfs"
        for made in (self.bundle, self.records, self.namespaces, self.users, folder / "bin"):
            made.mkdir()
        self.rootfs.mkdir()
        self.block.mkdir(parents=True)
        (self.block.parent / "by-id").mkdir()
        self.files = self.records / f"{ID}.files"
        self.namespace = self.namespaces / f"nova-{UUID}"
        self.namespace.touch()
        (self.records / ID).write_text(f"{self.namespace}\n")
        runc = folder / "bin" / "runc"
        runc.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        runc.chmod(0o755)
        (folder / "bin" / "python3").symlink_to(sys.executable)
        self.program = self.install() / "runtime" / "novadocker-runtime"

    def install(self) -> Path:
        """Copy the shim with paths below the test's directory."""
        package = self.folder / "novadocker"
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE / "runtime", package / "runtime", ignore=skipped)
        shutil.copy(PACKAGE / "__init__.py", package / "__init__.py")
        for name, old, new in (
            ("record.py", record.FOLDER, str(self.records)),
            ("record.py", f'"{record.NETWORK_NAMESPACES}"', f'"{self.namespaces}"'),
            ("record.py", f'"{record.USER_NAMESPACES}"', f'"{self.users}"'),
            (
                "create.py",
                '_CONTROL_GROUPS = "/sys/fs/cgroup"',
                f'_CONTROL_GROUPS = "{self.folder}/groups"',
            ),
            ("record.py", f'"{record.DISKS}"', f'"{self.disks}"'),
            ("record.py", f'"{record.CHECKPOINTS}"', f'"{self.folder}/checkpoints"'),
            ("novadocker-runtime", record.FOLDER, str(self.records)),
            ("create.py", "/proc/mounts", f"{self.folder}/mounts"),
        ):
            path = package / "runtime" / name
            text = path.read_text()
            assert old in text
            path.write_text(text.replace(old, new))
        return package

    def record(self) -> str:
        """Return a record in the form of version 1."""
        namespaces = {"network": str(self.namespace), "user": f"{self.users}/nova-{UUID}"}
        return json.dumps({"version": 1, "namespaces": namespaces})

    def write_config(self, **changes: Any) -> dict[str, Any]:
        config = {
            "ociVersion": "1.0.2",
            "root": {"path": str(self.rootfs)},
            "process": {"env": ["PATH=/bin"], "args": ["sleep", "1d"]},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "pid"}]},
            **changes,
        }
        # Go writes JSON in this form.
        text = json.dumps(config, separators=(",", ":"), ensure_ascii="\\ud800" in repr(config))
        (self.bundle / "config.json").write_text(text)
        return config

    @property
    def mounts(self) -> list[dict[str, Any]]:
        """The mounts of the configuration without that of the generator."""
        place = "/run/systemd/system-generators/novadocker"
        return [mount for mount in self.config["mounts"] if mount["destination"] != place]

    @property
    def whole_config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.bundle / "config.json").read_bytes())
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The configuration without the annotation that every container gets."""
        found = self.whole_config
        annotations = found.get("annotations", {})
        if annotations.pop("org.criu.config", "") and not annotations:
            del found["annotations"]
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

    def create(self, *arguments: str, root: str = "/run/x") -> subprocess.CompletedProcess[str]:
        """Call the shim as containerd does."""
        return self.run(
            "--root", root, "--log", str(self.log), "--log-format", "json", "--systemd-cgroup",
            "create", *(arguments or ("--bundle", str(self.bundle), "--pid-file", "/p", ID)),
        )  # fmt: skip

    def refusal(self, result: subprocess.CompletedProcess[str]) -> str:
        """Return the error that the engine shows; runc must not have run."""
        assert result.returncode == 1
        assert result.stdout == ""
        (line,) = self.log.read_text().splitlines()
        entry = json.loads(line)
        assert entry["level"] == "error"
        # The failed program's own output precedes the message.
        assert result.stderr.endswith(f"{entry['msg']}\n")
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


def test_runc_runs_as_the_engine_called_it(shim: Shim) -> None:
    shows = "umask; env | sort; ulimit -a; grep -E 'SigIgn|SigBlk' /proc/self/status"
    (shim.folder / "bin" / "runc").write_text(f"#!/bin/sh\n{shows}\n")
    done = shim.create()
    assert done.returncode == 0, done.stderr
    assert "SigIgn" in done.stdout
    assert done.stdout == shim.run("start", ID).stdout


def test_a_program_that_fails(shim: Shim) -> None:
    (shim.folder / "novadocker/runtime/record.py").write_text("raise RuntimeError")
    message = shim.refusal(shim.create())
    expected = "the program python3 that prepares containers failed with exit status 1"
    assert message == f"novadocker: {expected}"


def test_a_python_that_does_not_start(shim: Shim) -> None:
    (shim.folder / "bin" / "python3").unlink()
    (shim.folder / "bin" / "python3").write_text("#!/bin/sh\nexit 127\n")
    (shim.folder / "bin" / "python3").chmod(0o755)
    assert "that prepares containers failed with exit status 127" in shim.refusal(shim.create())


TRICK = '{"type":"network"}'


@pytest.mark.parametrize(
    ("terminal", "size"), [(True, {"height": 24, "width": 80}), (False, None), (None, None)]
)
def test_the_size_of_the_terminal(shim: Shim, terminal: bool | None, size: object) -> None:
    shim.write_config(process={"terminal": terminal, "args": ["sh"]})
    assert shim.create().returncode == 0
    assert shim.config["process"].get("consoleSize") == size


@pytest.mark.parametrize(
    "process",
    [
        {"env": [f"X={TRICK}", TRICK], "args": [TRICK, "}" + TRICK, '\\"' + TRICK, "\\"]},
        {"env": ["X=" + "".join(map(chr, range(0x80, 0x250)))], "args": ["&", "|", "\\1", "'`$("]},
        {"env": ["X=" + "ж" * 30000], "args": ["\u2028\u0081\u0082\u0088"]},
        {"env": ["\ud800"], "args": ["\udcff"], "numbers": [2**64 - 1, -1, 0.5, 1e300]},
    ],
)
def test_text_of_a_tenant_changes_nothing(shim: Shim, process: dict[str, Any]) -> None:
    annotations = {"type": "network", TRICK: TRICK}
    wanted = joined(shim.write_config(process=process, annotations=annotations), shim.namespace)
    result = shim.create()
    assert result.returncode == 0, result.stderr
    assert shim.config == wanted


@pytest.mark.parametrize("place", ["env", "args", "volume", "name"])
def test_the_time_is_linear_in_what_an_image_controls(
    shim: Shim, root: Path, login: Any, place: str
) -> None:
    """The start with the longest configuration takes little more than one with a short one."""

    def start(length: int) -> float:
        text = '\\"ж{}:,' * (length // 12)
        shim.files.mkdir(exist_ok=True)
        login()
        process = {
            "env": [text] if place == "env" else [],
            "args": [text] if place == "args" else [],
        }
        mount = {"destination": f"/{text}", "type": "tmpfs", "source": "tmpfs"}
        shim.write_config(
            process=process,
            mounts=[mount] if place == "volume" else [],
            annotations={text: ""} if place == "name" else {},
            root={"path": str(root)},
        )
        before = time.perf_counter()
        done = shim.create()
        taken = time.perf_counter() - before
        assert done.returncode == 0, done.stderr
        return taken

    short = min(start(50_000) for _ in range(3))
    long = min(start(400_000) for _ in range(3))
    # A quadratic start takes 64 times as long.
    assert long < 8 * short


def test_hundreds_of_volumes(shim: Shim, root: Path, login: Any) -> None:
    login()
    mounts = []
    for number in range(300):
        source = shim.folder / f"volume{number}"
        source.mkdir()
        mounts.append({"destination": f"/v{number}", "type": "bind", "source": str(source)})
    (root / "root").symlink_to("/v299/home")
    shim.write_config(root={"path": str(root)}, mounts=mounts)
    before = time.perf_counter()
    assert shim.create().returncode == 0
    assert time.perf_counter() - before < 5
    assert (shim.folder / "volume299/home/.ssh/authorized_keys").read_text() == "ssh-rsa A\n"


def test_a_configuration_without_an_end(shim: Shim) -> None:
    with (shim.bundle / "config.json").open("ab") as output:
        output.truncate(1 << 40)
    message = shim.refusal(shim.create())
    assert message.endswith("has more than 1048576 bytes")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "1", "NaN", "[" * 500_000, '{"linux":[]}', '{"linux":{"namespaces":[1]}}'],
)
def test_a_malformed_configuration(shim: Shim, content: str) -> None:
    (shim.bundle / "config.json").write_text(content)
    assert "is malformed" in shim.refusal(shim.create())


def test_no_record(shim: Shim) -> None:
    (shim.records / ID).unlink()
    message = shim.refusal(shim.create())
    assert message.startswith("novadocker: no network namespace is recorded for container 0123")


def test_empty_record(shim: Shim) -> None:
    (shim.records / ID).write_text("")
    assert "is recorded" in shim.refusal(shim.create())


# With userns-remap the engine adds ids to the directories' names.
@pytest.mark.parametrize("ids", ["", ".1000.1000"])
@pytest.mark.parametrize("name", ["init-stdin", f"{ID}-stdin"])
def test_terminal_that_the_engine_has_closed(shim: Shim, ids: str, name: str) -> None:
    folder = shim.folder / f"exec{ids}" / f"containerd{ids}" / f"{ID}{ids}"
    folder.mkdir(parents=True)
    os.mkfifo(folder / name)
    root = f"{shim.folder}/exec/runtime-runc/moby"
    message = shim.refusal(shim.create(root=root))
    assert message == f"novadocker: the engine has closed the terminal of container {ID}"
    engine = os.open(folder / name, os.O_RDWR)
    try:
        result = shim.create(root=root)
    finally:
        os.close(engine)
    assert result.returncode == 0, result.stderr


def test_namespace_gone(shim: Shim) -> None:
    shim.namespace.unlink()
    message = shim.refusal(shim.create())
    assert message.startswith(f"novadocker: network namespace {shim.namespace} of container")
    assert "is missing" in message


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "{folder}/nova-x", "{right}/../x", "{right}x", '"']
)
def test_record_of_something_else(shim: Shim, path: str) -> None:
    text = path.format(folder=shim.namespaces, right=shim.namespace)
    (shim.records / ID).write_text(f"{text}\n")
    assert "does not name the network namespace of a server" in shim.refusal(shim.create())


def test_the_record_that_the_driver_writes(shim: Shim) -> None:
    wanted = joined(shim.write_config(), shim.namespace)
    (shim.records / ID).write_text(shim.record())
    assert shim.create().returncode == 0
    assert shim.config == wanted


@pytest.fixture
def block_device() -> Path:
    """Return a block device of this machine, which the tests do not open."""
    found = next((path for path in Path("/dev").iterdir() if path.is_block_device()), None)
    if found is None:
        pytest.skip("this machine has no block device")
    return found


def record_device(shim: Shim, device: dict[str, Any]) -> None:
    content = json.loads(shim.record()) | {"devices": [device]}
    (shim.records / ID).write_text(json.dumps(content))


@pytest.mark.parametrize(("writable", "access"), [(True, "rw"), (False, "r")])
def test_a_volume_is_a_device(shim: Shim, block_device: Path, writable: bool, access: str) -> None:
    rules = [{"allow": False, "access": "rwm"}]
    linux = {**shim.config["linux"], "resources": {"devices": rules}}
    shim.write_config(linux=linux, mounts=[])
    number = os.stat(block_device).st_rdev
    major, minor = os.major(number), os.minor(number)
    source = str(block_device)
    (shim.block / "vdz").symlink_to("../dev/block/1:1")
    record_device(
        shim, {**DEVICE, "source": source, "major": major, "minor": minor, "writable": writable}
    )
    assert shim.create().returncode == 0
    numbers = {"type": "b", "major": major, "minor": minor}
    (node,) = shim.config["linux"]["devices"]
    assert node == {"path": "/dev/vdb", "fileMode": 0o660, "uid": 0, "gid": 0, **numbers}
    assert shim.config["linux"]["resources"]["devices"] == [
        *rules,
        {"allow": True, "access": access, **numbers},
    ]
    assert shim.config["annotations"] == {record.DEVICES_ANNOTATION: f"{major}:{minor}"}
    links, block = shim.config["mounts"]
    assert links["destination"] == "/dev/disk/by-id"
    assert links["source"] == f"{shim.disks}/nova-{UUID}/by-id"
    assert (block["destination"], block["source"]) == ("/sys/block", str(shim.block))
    assert "ro" in links["options"]
    assert "ro" in block["options"]
    # The link of a former start is removed.
    assert {path.name: os.readlink(path) for path in shim.block.iterdir()} == {
        "vdb": f"../dev/block/{major}:{minor}"
    }


def test_a_server_of_a_driver_that_made_no_links_starts(shim: Shim) -> None:
    shutil.rmtree(shim.disks)
    shim.write_config(mounts=[])
    content = json.loads(shim.record()) | {"devices": []}
    (shim.records / ID).write_text(json.dumps(content))
    assert shim.create().returncode == 0
    assert shim.config["mounts"] == []


def test_a_server_that_may_mount_sysfs_keeps_its_sys(shim: Shim) -> None:
    """The kernel would mount no sysfs in the server's containers otherwise."""
    process = {**shim.config["process"], "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}}
    users = shim.users / f"nova-{UUID}"
    users.touch()
    shim.write_config(process=process, mounts=[])
    content = json.loads(shim.record()) | {"devices": []}
    (shim.records / ID).write_text(json.dumps(content))
    assert shim.create().returncode == 0
    places = [mount["destination"] for mount in shim.config["mounts"]]
    assert places == ["/dev/disk/by-id"]


@pytest.mark.parametrize(
    "change", [{"minor": 1 << 19}, {"source": "/dev/none"}, {"source": "/dev/null"}]
)
def test_a_volume_that_is_not_connected_any_more(
    shim: Shim, block_device: Path, change: dict[str, Any]
) -> None:
    number = os.stat(block_device).st_rdev
    device = {"source": str(block_device), "major": os.major(number), "minor": os.minor(number)}
    before = shim.config
    record_device(shim, {**DEVICE, **device, **change})
    assert "the volume at /dev/vdb is not connected" in shim.refusal(shim.create())
    assert shim.config == before


def test_a_volume_at_the_path_of_another_device(shim: Shim, block_device: Path) -> None:
    taken = {"path": "/dev/vdb", "type": "c", "major": 1, "minor": 3}
    shim.write_config(linux={**shim.config["linux"], "devices": [taken]})
    number = os.stat(block_device).st_rdev
    device = {"source": str(block_device), "major": os.major(number), "minor": os.minor(number)}
    record_device(shim, {**DEVICE, **device})
    assert "the server has another device at /dev/vdb" in shim.refusal(shim.create())


def test_the_limits_of_a_volume(shim: Shim, block_device: Path) -> None:
    linux = {**shim.config["linux"], "resources": {"blockIO": None}}
    shim.write_config(linux=linux, mounts=[])
    number = os.stat(block_device).st_rdev
    numbers = {"major": os.major(number), "minor": os.minor(number)}
    rates = {"read_bytes": 0, "write_bytes": 4096, "write_iops": 7}
    record_device(shim, {**DEVICE, "source": str(block_device), **numbers, "rates": rates})
    assert shim.create().returncode == 0
    assert shim.config["linux"]["resources"]["blockIO"] == {
        "throttleWriteBpsDevice": [{**numbers, "rate": 4096}],
        "throttleWriteIOPSDevice": [{**numbers, "rate": 7}],
    }


@pytest.mark.parametrize("gone", [True, False])
def test_a_root_on_a_volume_that_is_not_connected(
    shim: Shim, block_device: Path, gone: bool
) -> None:
    before = shim.config
    number = os.stat(block_device).st_rdev
    root = {
        "path": "/dev/vda",
        "source": "/dev/gone" if gone else str(block_device),
        "major": os.major(number),
        "minor": os.minor(number) + (0 if gone else 1),
        "writable": True,
    }
    content = json.loads(shim.record()) | {"root": root}
    (shim.records / ID).write_text(json.dumps(content))
    assert "the volume at /dev/vda is not connected" in shim.refusal(shim.create())
    assert shim.config == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "has a version that this runtime shim does not support"),
        ({"version": True}, "has a version that this runtime shim does not support"),
        ({"drives": []}, "has a member that this runtime shim does not support"),
        ({"namespaces": {}}, "does not name the network namespace of a server"),
        ({"namespaces": {"network": "/proc/1/ns/net"}}, "does not name the network namespace"),
        ({"namespaces": {"network": 1}}, "does not name the network namespace"),
        ({"namespaces": {"pid": "/proc/1/ns/pid"}}, "has malformed namespaces"),
        ({"namespaces": []}, "has malformed namespaces"),
        *(({"devices": devices}, message) for devices, message in MALFORMED_DEVICES),
        ({"root": []}, "has malformed devices"),
        ({"root": {**DEVICE, "path": "/dev/../x"}}, "has malformed devices"),
        ({"root": {**DEVICE, "writable": False}}, "has a root directory that cannot be written"),
        ({"ids": {"first": 65536}}, "has malformed ids"),
        ({"ids": {"first": 0, "count": 65536}}, "has malformed ids"),
        ({"ids": {"first": 65537, "count": 65536}}, "has malformed ids"),
        ({"ids": {"first": True, "count": 65536}}, "has malformed ids"),
        ({"ids": {"first": 65536, "count": 1 << 20}}, "has malformed ids"),
        ({"ids": {"first": 4294901760, "count": 65536}}, "has malformed ids"),
    ],
)
def test_a_record_with_something_else(shim: Shim, changes: dict[str, Any], message: str) -> None:
    before = shim.config
    (shim.records / ID).write_text(json.dumps(json.loads(shim.record()) | changes))
    assert message in shim.refusal(shim.create())
    assert shim.config == before


def test_a_record_with_the_user_namespace_of_another_server(shim: Shim) -> None:
    found = json.loads(shim.record())
    found["namespaces"]["user"] = found["namespaces"]["user"].replace("0e6e", "1e6e")
    (shim.records / ID).write_text(json.dumps(found))
    assert "user namespace of the same server" in shim.refusal(shim.create())


@pytest.mark.parametrize("trap", ["link", "pipe", "writable", "folder writable", "large", "login"])
def test_a_record_that_somebody_else_may_have_written(shim: Shim, root: Path, trap: str) -> None:
    path = shim.records / ID
    elsewhere = path.rename(shim.folder / "elsewhere")
    if trap == "link":
        path.symlink_to(elsewhere)
    elif trap == "pipe":
        os.mkfifo(path)
    else:
        elsewhere.rename(path)
    if trap == "writable":
        path.chmod(0o666)
    elif trap == "folder writable":
        shim.records.chmod(0o777)
    elif trap == "large":
        path.write_text("{" * 70_000)
    elif trap == "login":
        (shim.files / "login").symlink_to("/etc/passwd")
    message = shim.refusal(shim.create())
    assert (
        str(path) in message or "record" in message or "can write" in message or "link" in message
    )


@pytest.mark.parametrize("container_id", ["..", "x", ID[:-1], ID + "0", f"../records/{ID}", ""])
def test_id_of_no_container(shim: Shim, container_id: str) -> None:
    message = shim.refusal(shim.create("--bundle", str(shim.bundle), container_id))
    assert message == "novadocker: the container id is not an id of the engine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linux": {"namespaces": [{"type": "mount"}]}}, "has no network namespace"),
        ({"linux": {"namespaces": [{"type": "network"}] * 2}}, "has two network namespaces"),
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
    """Return the root directory of a container for which the driver wrote a file."""
    root = shim.folder / "root"
    (root / "etc").mkdir(parents=True)
    shim.write_config(root={"path": str(root)})
    (shim.files / "etc").mkdir(parents=True)
    (shim.files / "etc" / "hosts").write_text("ours")
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
    assert (root / "etc").stat().st_mode & 0o777 == 0o755


def test_files_never_follow_a_link_of_the_image(shim: Shim, root: Path) -> None:
    outside = shim.folder / "outside"
    outside.write_text("the host's")
    (root / "etc" / "hosts").symlink_to(outside)
    assert shim.create().returncode == 0
    assert outside.read_text() == "the host's"
    assert (root / "etc" / "hosts").read_text() == "ours"
    assert not (root / "etc" / "hosts").is_symlink()


# An image's links, and the path inside the root that /x resolves to.
LINKS = [
    ({"x": "/"}, ""),
    ({"x": "."}, ""),
    ({"x": "../../../.."}, ""),
    ({"x": "/usr/x"}, "usr/x"),
    ({"x": "{root}/x"}, "{root}/x"),
    ({"x": "../a/../b/c"}, "b/c"),
    ({"x": "/y", "y": "z/z", "z": "/w"}, "w/z"),
    ({"x": "a\n"}, "a\n"),
    ({"x": "a b*"}, "a b*"),
    ({"d/e": "../../f", "x": "/d/e/../g"}, "g"),
    ({"x": "/proc/self/root"}, "proc/self/root"),
]


@pytest.mark.parametrize(("links", "target"), LINKS)
def test_links_lead_where_they_do_in_the_container(
    shim: Shim, root: Path, links: dict[str, str], target: str
) -> None:
    (root / "etc").rmdir()
    for name, leads in links.items():
        path = root / name.replace("x", "etc")
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(leads.format(root=root))
    done = shim.create()
    assert done.returncode == 0, done.stderr
    where = root / target.format(root=str(root).lstrip("/"))
    assert where.resolve() == where
    assert (where / "hosts").read_text() == "ours"


@pytest.mark.parametrize("planted", ["loop", "file", "folder", "file above"])
def test_an_etc_that_cannot_take_them(shim: Shim, root: Path, planted: str) -> None:
    if planted == "folder":
        (root / "etc" / "hosts").mkdir()
    else:
        (root / "etc").rmdir()
    if planted == "loop":
        (root / "etc").symlink_to("/etc")
    elif planted == "file":
        (root / "etc").write_text("")
    elif planted == "file above":
        (root / "file").write_text("")
        (root / "etc").symlink_to("file/etc")
    message = shim.refusal(shim.create())
    assert "/etc" in message or "symbolic links" in message


def test_files_go_to_the_volume_that_is_mounted_there(shim: Shim, root: Path) -> None:
    volume = shim.folder / "volume"
    (volume / "deep").mkdir(parents=True)
    (root / "etc").rmdir()
    (root / "etc").symlink_to("/data/deep")
    mount = {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind"]}
    shim.write_config(root={"path": str(root)}, mounts=[mount])
    assert shim.create().returncode == 0
    assert (volume / "deep" / "hosts").read_text() == "ours"
    assert not (root / "data").exists()


@pytest.mark.parametrize(
    ("dbus", "expected"), [(None, None), ("file", "ours\n"), ("link", "link"), ("pipe", "pipe")]
)
def test_machine_id_of_dbus(shim: Shim, root: Path, dbus: str | None, expected: str | None) -> None:
    (shim.files / "etc" / "machine-id").write_text("ours\n")
    (root / "var/lib/dbus").mkdir(parents=True)
    path = root / "var/lib/dbus/machine-id"
    if dbus == "file":
        path.write_text("the image's\n")
    elif dbus == "link":
        path.symlink_to("/etc/machine-id")
    elif dbus == "pipe":
        os.mkfifo(path)
    assert shim.create().returncode == 0
    assert (root / "etc/machine-id").read_text() == "ours\n"
    if expected == "link":
        assert path.is_symlink()
    elif expected == "pipe":
        assert path.is_fifo()
    else:
        assert (path.read_text() if path.exists() else None) == expected


# -- /etc/hostname -----------------------------------------------------------------------------


def bind(destination: str, source: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rbind"]}


@pytest.mark.parametrize("name", ["hostname", "hosts", "resolv.conf"])
def test_the_engine_s_files_do_not_cover_those_of_the_container(
    shim: Shim, root: Path, name: str
) -> None:
    (shim.files / "etc" / name).write_text("ours")
    kept = [bind("/etc/ssl", str(shim.folder)), bind("/etc/hosts.allow", f"/x/{ID}/hosts")]
    engine_s = bind(f"/etc/{name}", f"/var/lib/docker/containers/{ID}/{name}")
    shim.write_config(root={"path": str(root)}, mounts=[kept[0], engine_s, kept[1]])
    assert shim.create().returncode == 0
    assert shim.config["mounts"] == kept
    assert (root / "etc" / name).read_text() == "ours"


def test_a_volume_of_the_image_covers_etc_hostname(shim: Shim) -> None:
    volume = shim.folder / "volume"
    volume.touch()
    shim.write_config(hostname="web-1", mounts=[bind("/etc/hostname", str(volume))])
    assert shim.create().returncode == 0
    assert shim.config["mounts"] == [bind("/etc/hostname", str(volume))]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"mine", "mine"),
        (b"# a comment\n\n  db-1.example.org \nsecond\n", "db-1.example.org"),
        (b"a" * 64, "a" * 64),
        (b"a" * 65, "web-1"),
        (b"two words\n", "web-1"),
        (b"\xff\n", "web-1"),
        (b"a\0b\n", "web-1"),
        (b"", "web-1"),
        (b"\n#\n", "web-1"),
        (b"#" * ((1 << 20) + 1), "web-1"),
    ],
)
def test_the_host_name_is_that_of_etc_hostname(shim: Shim, content: bytes, name: str) -> None:
    (shim.rootfs / "etc").mkdir()
    (shim.rootfs / "etc/hostname").write_bytes(content)
    shim.write_config(hostname="web-1")
    assert shim.create().returncode == 0
    assert shim.config["hostname"] == name


def test_the_host_name_is_that_of_the_driver_s_file(shim: Shim, root: Path) -> None:
    (shim.files / "etc/hostname").write_text("web-2\n")
    shim.write_config(root={"path": str(root)}, hostname="web-1")
    assert shim.create().returncode == 0
    assert shim.config["hostname"] == "web-2"


@pytest.mark.parametrize("planted", ["loop", "outside", "pipe", "folder", "no etc"])
def test_an_etc_hostname_that_can_not_be_read(shim: Shim, planted: str) -> None:
    outside = shim.folder / "outside"
    outside.write_text("other\n")
    path = shim.rootfs / "etc/hostname"
    path.parent.mkdir()
    if planted == "loop":
        path.symlink_to("hostname")
    elif planted == "outside":
        path.symlink_to(outside)
    elif planted == "pipe":
        os.mkfifo(path)
    elif planted == "folder":
        path.mkdir()
    else:
        path.parent.rmdir()
        path.parent.touch()
    shim.write_config(hostname="web-1")
    assert shim.create().returncode == 0
    assert shim.config["hostname"] == "web-1"


def test_a_container_in_the_host_s_uts_namespace_keeps_its_name(shim: Shim) -> None:
    (shim.rootfs / "etc").mkdir()
    (shim.rootfs / "etc/hostname").write_text("mine\n")
    assert shim.create().returncode == 0
    assert "hostname" not in shim.config


# -- systemd -------------------------------------------------------------------------------------

RUN = {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["rw"]}
SHM = {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]}


def groups(*options: str) -> dict[str, Any]:
    return {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": [*options, "nosuid", "noexec", "nodev"],
    }


def systemd_config(shim: Shim, *mounts: dict[str, Any], group: str = f"/docker/{ID}") -> None:
    linux = {
        "cgroupsPath": group,
        "namespaces": [{"type": "network"}, {"type": "cgroup"}],
    }
    shim.write_config(mounts=list(mounts), linux=linux)


@pytest.mark.parametrize(
    ("group", "source"),
    [
        (f"/docker/{ID}", f"/docker/{ID}"),
        (f"system.slice:docker:{ID}", f"/system.slice/docker-{ID}.scope"),
    ],
)
def test_systemd_writes_its_own_groups_of_v1_and_no_others(
    shim: Shim, group: str, source: str
) -> None:
    (shim.folder / "groups/systemd").mkdir(parents=True)
    systemd_config(shim, SHM, groups("ro"), RUN, group=group)
    done = shim.create()
    assert done.returncode == 0, done.stderr
    own = {
        "destination": "/sys/fs/cgroup/systemd",
        "type": "bind",
        "source": f"{shim.folder}/groups/systemd{source}",
        "options": ["bind", "nosuid", "noexec", "nodev"],
    }
    assert shim.mounts == [SHM, groups("ro"), own, RUN]


@pytest.mark.parametrize("delegated", [True, False])
def test_systemd_writes_its_groups_of_v2_where_limits_are_kept(shim: Shim, delegated: bool) -> None:
    (shim.folder / "groups").mkdir()
    (shim.folder / "groups/cgroup.controllers").touch()
    options = "rw,nosuid,nsdelegate,memory_recursiveprot" if delegated else "rw,nosuid"
    (shim.folder / "mounts").write_text(
        f"proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 {options} 0 0\n"
    )
    systemd_config(shim, SHM, groups("ro"), RUN)
    done = shim.create()
    if delegated:
        assert done.returncode == 0, done.stderr
        assert shim.mounts == [SHM, groups("rw"), RUN]
    else:
        assert "nsdelegate" in shim.refusal(done)


@pytest.mark.parametrize("at", ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "both"])
def test_volumes_in_place_of_control_groups_are_left_out(shim: Shim, at: str) -> None:
    (shim.folder / "groups/systemd").mkdir(parents=True)
    above, below = (bind(f"/sys/fs/cgroup{name}", str(shim.folder)) for name in ("", "/systemd"))
    found = {
        "/sys/fs/cgroup": [above],
        "/sys/fs/cgroup/systemd": [groups("ro"), below],
        "both": [above, below],
    }
    systemd_config(shim, SHM, *found[at], RUN)
    done = shim.create()
    assert done.returncode == 0, done.stderr
    first, second, own, last = shim.mounts
    assert [first, second, last] == [SHM, groups("ro"), RUN]
    assert own["source"].startswith(f"{shim.folder}/groups/systemd/")


def test_volumes_of_others_in_place_of_control_groups_stay(shim: Shim) -> None:
    volume = bind("/sys/fs/cgroup", str(shim.folder))
    systemd_config(shim, SHM, volume)
    assert shim.create().returncode == 0
    assert shim.mounts == [SHM, volume]


UNITS = "usr/lib/systemd/system"
OWN_UNITS = "etc/systemd/system"
WANTS = "local-fs.target.wants/tmp.mount"
UNIT = f"{UNITS}/tmp.mount"
ENABLED = {f"{UNITS}/{WANTS}": "../tmp.mount", UNIT: None}
TMP = {
    "destination": "/tmp",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "nodev", "strictatime", "mode=1777", "size=1024", "nr_inodes=1m"],
}


def install_units(root: Path, units: dict[str, str | None]) -> None:
    """Create units: links where there is a target, otherwise files."""
    for path, target in units.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if target is None:
            (root / path).write_text("[Mount]\n")
        else:
            (root / path).symlink_to(target)


def started_tmp(shim: Shim, *mounts: dict[str, Any], memory: int = 2048) -> list[dict[str, Any]]:
    """Return the mounts that a container gets beside the one at /run."""
    linux = {"namespaces": [{"type": "network"}], "resources": {"memory": {"limit": memory}}}
    shim.write_config(mounts=[*mounts, RUN, SHM], linux=linux)
    done = shim.create()
    assert done.returncode == 0, done.stderr
    return [mount for mount in shim.mounts if mount not in (RUN, SHM)]


@pytest.mark.parametrize(
    "units",
    [
        ENABLED,
        {f"{OWN_UNITS}/{WANTS}": "/usr/share/systemd/tmp.mount", f"{OWN_UNITS}/tmp.mount": None,
         "usr/share/systemd/tmp.mount": None},
        {"lib": "usr/lib", **ENABLED},
        {**ENABLED, f"{OWN_UNITS}/tmp.mount": "/srv/tmp.mount", "srv/tmp.mount": None},
    ],
)  # fmt: skip
def test_tmp_is_in_memory_where_the_image_has_it_so(
    shim: Shim, units: dict[str, str | None]
) -> None:
    install_units(shim.rootfs, units)
    below = bind("/tmp/x", str(shim.folder))
    assert started_tmp(shim, bind("/tmp", str(shim.folder)), SHM) == [TMP]
    shim.write_config()
    assert started_tmp(shim) == [TMP]
    linux = {"namespaces": [{"type": "network"}], "resources": {"memory": {"limit": 2048}}}
    shim.write_config(mounts=[RUN, below], linux=linux)
    assert shim.create().returncode == 0
    assert shim.mounts == [TMP, RUN, below]


@pytest.mark.parametrize(
    "units",
    [
        {},
        {UNIT: None},
        {f"{UNITS}/{WANTS}": "../tmp.mount"},
        {**ENABLED, f"{OWN_UNITS}/tmp.mount": "/dev/null"},
        {**ENABLED, f"{OWN_UNITS}/{WANTS}": "/dev/null"},
        {**ENABLED, f"{OWN_UNITS}/tmp.mount": "/srv/empty"},
        {**ENABLED, f"{OWN_UNITS}/tmp.mount": "tmp.mount"},
    ],
)
def test_tmp_is_on_the_disk_where_the_image_has_it_so(
    shim: Shim, units: dict[str, str | None]
) -> None:
    (shim.rootfs / "srv").mkdir()
    (shim.rootfs / "srv/empty").touch()
    install_units(shim.rootfs, units)
    volume = bind("/tmp", str(shim.folder))
    assert started_tmp(shim, volume) == [volume]


@pytest.mark.parametrize("depth", [180, 250])
def test_deep_links_use_up_no_descriptors(tmp_path: Path, depth: int) -> None:
    """A path of at most 200 directories can be opened."""
    place = tmp_path / "/".join("d" * depth)
    place.mkdir(parents=True)
    below = "/" + "d/" * depth
    install_units(
        tmp_path,
        {
            "usr/lib/systemd/system": below,
            "etc/systemd/system": below,
            "etc/hostname": f"{below}name",
        },
    )
    root = tree.Tree(str(tmp_path), {}, tree.Owner(0, 0))
    before = os.listdir("/proc/self/fd")
    assert not create._wants_tmp(root)
    assert create._read_hostname(root) == ""
    assert os.listdir("/proc/self/fd") == before
    install_units(place, {"tmp.mount": None, "local-fs.target.wants/tmp.mount": "../tmp.mount"})
    assert create._wants_tmp(root) == (depth < 200)
    assert os.listdir("/proc/self/fd") == before


def test_tmp_of_others_stays_on_the_disk(shim: Shim) -> None:
    install_units(shim.rootfs, ENABLED)
    assert started_tmp(shim, memory=-1) == []
    resources = {"memory": {"limit": 2048}}
    linux = {"namespaces": [{"type": "network"}], "resources": resources}
    shim.write_config(mounts=[SHM], linux=linux)
    assert shim.create().returncode == 0
    assert shim.mounts == [SHM]


def test_the_generator_is_mounted_for_a_systemd_without_privileges(shim: Shim) -> None:
    shim.write_config(mounts=[RUN], process={"capabilities": {"bounding": ["CAP_CHOWN"]}})
    assert shim.create().returncode == 0
    run, generator = shim.config["mounts"]
    assert run == RUN
    assert generator["destination"] == "/run/systemd/system-generators/novadocker"
    assert "ro" in generator["options"]
    assert Path(generator["source"]).name == "systemd-generator"
    assert os.access(generator["source"], os.X_OK)


@pytest.mark.parametrize(
    ("mount", "capabilities"), [(SHM, []), (RUN, ["CAP_CHOWN", "CAP_SYS_ADMIN"])]
)
def test_others_get_no_generator(
    shim: Shim, mount: dict[str, Any], capabilities: list[str]
) -> None:
    shim.write_config(mounts=[mount], process={"capabilities": {"bounding": capabilities}})
    assert shim.create().returncode == 0
    assert shim.config["mounts"] == [mount]


def test_systemd_on_a_host_without_its_hierarchy(shim: Shim) -> None:
    systemd_config(shim, groups("ro"), RUN)
    assert "name=systemd" in shim.refusal(shim.create())


def test_others_get_no_groups(shim: Shim) -> None:
    (shim.folder / "groups/systemd").mkdir(parents=True)
    systemd_config(shim, SHM, groups("ro"))
    assert shim.create().returncode == 0
    assert shim.mounts == [SHM, groups("ro")]


def test_systemd_gets_no_groups_outside_of_a_namespace(shim: Shim) -> None:
    shim.write_config(
        mounts=[groups("ro"), RUN],
        linux={"cgroupsPath": f"/docker/{ID}", "namespaces": [{"type": "network"}]},
    )
    assert shim.create().returncode == 0
    assert shim.mounts == [groups("ro"), RUN]


# -- keys and passwords -------------------------------------------------------------------------

ME = f"{os.getuid()}:{os.getgid()}"


@pytest.fixture
def login(shim: Shim, root: Path) -> Any:
    """Return a function that writes a login, by default with a key for root."""

    def leave(user: str = "root", keys: str = "ssh-rsa A\n", password: str = "") -> None:
        (shim.files / "login").write_text(f"{user} {password}".strip() + "\n")
        if keys:
            (shim.files / ".ssh").mkdir(0o700)
            (shim.files / ".ssh/authorized_keys").write_text(keys)
            (shim.files / ".ssh/authorized_keys").chmod(0o600)

    return leave


def test_keys_in_an_image_without_accounts(shim: Shim, root: Path, login: Any) -> None:
    login(password="$6$x 20000")
    assert shim.create().returncode == 0
    folder = root / "root/.ssh"
    assert (folder / "authorized_keys").read_text() == "ssh-rsa A\n"
    assert (folder / "authorized_keys").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert os.listdir(folder) == ["authorized_keys"]
    assert os.listdir(root / "etc") == ["hosts"]
    assert not shim.files.exists()


def test_keys_of_another_user(shim: Shim, root: Path, login: Any) -> None:
    login("web")
    (root / "etc/passwd").write_text(
        f"root:x:0:0::/root:\nwebs:x:0:0::/x:\nweb:x:{ME}:a b:/srv/w:\n"
    )
    assert shim.create().returncode == 0
    assert (root / "srv/w/.ssh/authorized_keys").read_text() == "ssh-rsa A\n"
    assert not (root / "root").exists()


def test_keys_of_the_image_stay_and_none_comes_twice(shim: Shim, root: Path, login: Any) -> None:
    (root / "root/.ssh").mkdir(parents=True)
    path = root / "root/.ssh/authorized_keys"
    path.write_text("ssh-rsa Z")
    for _ in range(2):
        login()
        assert shim.create().returncode == 0
        shim.files.mkdir()
        shim.write_config(root={"path": str(root)})
        assert path.read_text() == "ssh-rsa Z\nssh-rsa A\n"


def test_a_hundred_keys(shim: Shim, root: Path, login: Any) -> None:
    keys = "".join(f"ssh-rsa {'k' * 700}{number} '$(x)` \\n\n" for number in range(100))
    login(keys=keys)
    assert shim.create().returncode == 0
    assert (root / "root/.ssh/authorized_keys").read_text() == keys


@pytest.mark.parametrize("place", ["root", "root/.ssh", "root/.ssh/authorized_keys"])
@pytest.mark.parametrize(("links", "target"), LINKS)
def test_keys_through_links(
    shim: Shim, root: Path, login: Any, place: str, links: dict[str, str], target: str
) -> None:
    login()
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to("/x")
    for name, leads in links.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(leads.format(root=root))
    done = shim.create()
    rest = "root/.ssh/authorized_keys".removeprefix(place).lstrip("/")
    where = root / target.format(root=str(root).lstrip("/")) / rest
    if where == root or (place.endswith("keys") and not where.parent.exists()):
        assert "authorized_keys" in shim.refusal(done)
        return
    assert done.returncode == 0, done.stderr
    assert where.resolve() == where
    assert where.read_text() == "ssh-rsa A\n"


def test_links_that_make_a_path_long(shim: Shim, root: Path, login: Any) -> None:
    login()
    for number in range(39):
        (root / f"n{number}").symlink_to(f"n{number + 1}/" + "a/" * 2000)
    (root / "root").symlink_to("n0")
    before = time.perf_counter()
    assert "a path of more than 200 directories" in shim.refusal(shim.create())
    assert time.perf_counter() - before < 5


@pytest.mark.parametrize("trap", ["pipe", "device", "link to the host's device"])
@pytest.mark.parametrize(
    "place", ["etc/passwd", "etc/shadow", "root/.ssh/authorized_keys", "etc/shadow.nova"]
)
def test_nothing_but_plain_files_is_opened(
    shim: Shim, root: Path, login: Any, place: str, trap: str
) -> None:
    if trap == "device" and os.getuid() != 0:
        pytest.skip("needs root to make a device node")
    login(password="$6$x 20000")
    (root / "etc/passwd").write_text("root:x:0:0::/root:\n")
    (root / "etc/shadow").write_text("root:*:1\n")
    (root / place).unlink(missing_ok=True)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    if trap == "pipe":
        os.mkfifo(root / place)
    elif trap == "device":
        # /dev/full: each write to it fails.
        os.mknod(root / place, 0o666 | 0o020000, os.makedev(1, 7))
    else:
        (root / place).symlink_to("/dev/full")
        (root / "dev").mkdir()
    done = shim.create()
    assert done.returncode == 0, done.stderr
    if place != "etc/passwd":
        shadow = "dev/full" if (place, trap[:4]) == ("etc/shadow", "link") else "etc/shadow"
        assert (root / shadow).read_text().startswith("root:$6$x:20000")


@pytest.mark.parametrize(
    ("passwd", "text"),
    [
        ("root:x:0:0::/root:\n", "no user web"),
        ("web:x:0\n", "malformed entry of the user web"),
        ("web:x:1 2:3::/:\n", "malformed entry of the user web"),
        ("web:x:4294967295:3::/:\n", "malformed entry of the user web"),
        (f"web:x:{'9' * 100_000}:3::/:\n", "malformed entry of the user web"),
        (f"web:x:1:2::/{'a/' * 100_000}:\n", "path of more than 4096"),
        (f"web:x:1:2::/{'a' * 300}\r\x1b[2J:\n", "aaa in the image can't be opened"),
    ],
)
def test_a_user_the_image_does_not_have(
    shim: Shim, root: Path, login: Any, passwd: str, text: str
) -> None:
    login("web")
    (root / "etc/passwd").write_text(passwd)
    assert text in shim.refusal(shim.create())


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to change owners")
def test_ids_with_leading_zeros_are_decimal(shim: Shim, root: Path, login: Any) -> None:
    login("web")
    (root / "etc/passwd").write_text("web:x:08:0019::/home/web:\n")
    done = shim.create()
    assert done.returncode == 0, done.stderr
    found = (root / "home/web/.ssh/authorized_keys").stat()
    assert (found.st_uid, found.st_gid) == (8, 19)
    assert (root / "home").stat().st_uid == 0


def test_a_message_with_text_of_the_image_is_one_line(shim: Shim, root: Path, login: Any) -> None:
    login("web")
    (root / "etc/passwd").write_bytes(b'web:x:1:2::/f/"\\\x1b\xff\xc3\x84:\n')
    (root / "f").touch()
    message = shim.refusal(shim.create())
    assert message == (
        'novadocker: the directory /f/"\\\\\\x1b\\udcff\\xc4 '
        "can't be created in the image's file system"
    )


def test_accounts_that_never_end(shim: Shim, root: Path, login: Any) -> None:
    login()
    with (root / "etc/passwd").open("w") as output:
        output.truncate(1 << 40)
    assert "too large" in shim.refusal(shim.create())


@pytest.mark.parametrize(("before", "after"), SHADOWS)
def test_password(shim: Shim, root: Path, login: Any, before: str, after: str) -> None:
    login(keys="", password="$6$x 20000")
    (root / "etc/passwd").write_text("root:x:0:0::/root:\n")
    shadow = root / "etc/shadow"
    shadow.write_text(before)
    shadow.chmod(0o640)
    assert shim.create().returncode == 0
    assert shadow.read_bytes() == after.encode()
    assert shadow.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(root / "etc")) == ["hosts", "passwd", "shadow"]
    assert not (root / "root").exists()


def test_password_of_an_image_without_shadow(shim: Shim, root: Path, login: Any) -> None:
    login(password="$6$x 20000")
    (root / "etc/passwd").write_text("root:x:0:0::/root:\n")
    assert shim.create().returncode == 0
    assert (root / "etc/shadow").read_text() == "root:$6$x:20000:0:99999:7:::\n"
    assert (root / "etc/shadow").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("trap", ["folder", "link to the root", "link to a folder"])
def test_a_shadow_that_cannot_take_a_password(
    shim: Shim, root: Path, login: Any, trap: str
) -> None:
    login(password="$6$x 20000")
    (root / "etc/passwd").write_text("root:x:0:0::/root:\n")
    if trap == "folder":
        (root / "etc/shadow").mkdir()
    else:
        (root / "etc/shadow").symlink_to("/" if trap == "link to the root" else "/etc")
    assert "the /etc/shadow in the image is not a regular file" in shim.refusal(shim.create())


def test_password_of_an_image_that_keeps_it_elsewhere(shim: Shim, root: Path, login: Any) -> None:
    login(password="$6$x 20000")
    (root / "etc/passwd").write_text("root::0:0::/root:\n")
    assert shim.create().returncode == 0
    assert sorted(os.listdir(root / "etc")) == ["hosts", "passwd"]


def test_text_of_a_tenant_is_not_taken_for_the_root(shim: Shim, root: Path) -> None:
    trick = '"root":{"path":"/elsewhere"'
    config = {"annotations": {trick: trick}, "root": {"path": str(root)}}
    shim.write_config(process={"args": [trick]}, **config)
    assert shim.create().returncode == 0
    assert (root / "etc" / "hosts").read_text() == "ours"


# -- containers inside ----------------------------------------------------------------------------

OF_V1 = """\
cgroup /sys/fs/cgroup/memory cgroup rw,nosuid,memory 0 0
cgroup /sys/fs/cgroup/blkio cgroup rw,nosuid,blkio 0 0
cgroup /sys/fs/cgroup/net_cls,net_prio cgroup rw,nosuid,net_cls,net_prio 0 0
systemd /sys/fs/cgroup/systemd cgroup rw,nosuid,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0
cgroup /mnt/pids cgroup rw,nosuid,pids 0 0
"""


def nesting_config(shim: Shim, *mounts: dict[str, Any], **changes: Any) -> None:
    """Write the configuration of a server that runs containers in its user namespace."""
    ids = [{"containerID": 0, "hostID": os.getuid(), "size": 65536}]
    groups_of = [{"containerID": 0, "hostID": os.getgid(), "size": 65536}]
    kinds = ("network", "cgroup", "user")
    shim.write_config(
        mounts=list(mounts),
        process={"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}},
        linux={
            "cgroupsPath": f"/docker/{ID}",
            "namespaces": [{"type": kind} for kind in kinds],
            "uidMappings": ids,
            "gidMappings": groups_of,
            **changes,
        },
    )


@pytest.fixture
def namespace_of_user(shim: Shim) -> None:
    """Let the shim find the server's user namespace, which only root can mount."""
    path = shim.program.parent / "create.py"
    text = path.read_text()
    check = "if not _is_user_namespace(user):"
    assert check in text
    path.write_text(text.replace(check, "if False:"))


@pytest.mark.usefixtures("namespace_of_user")
def test_an_engine_inside_divides_groups_of_v1_whose_limits_stay(shim: Shim) -> None:
    (shim.folder / "mounts").write_text(OF_V1)
    made = {}
    for name in ("memory", "systemd", "blkio"):
        made[name] = shim.folder / "groups" / name / "docker" / ID
        made[name].mkdir(parents=True)
        for file in ("cgroup.procs", "tasks"):
            (made[name] / file).touch()
    nesting_config(shim, SHM, groups("ro"), bind("/sys/fs/cgroup/x", str(shim.folder)), RUN)
    done = shim.create()
    assert done.returncode == 0, done.stderr
    assert [mount["destination"] for mount in shim.mounts] == [
        "/dev/shm",
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/memory",
        "/sys/fs/cgroup/systemd",
        "/run",
    ]
    # It masks the units of the mounts that the kernel refuses in a user namespace.
    generator = shim.config["mounts"][-1]["source"]
    assert Path(generator).name == "systemd-mount-generator"
    assert os.access(generator, os.X_OK)
    _, base, memory, *_ = shim.mounts
    assert "ro" in base["options"]
    assert base["type"] == "tmpfs"
    assert (memory["type"], memory["source"]) == ("bind", str(made["memory"]))
    assert "ro" not in memory["options"]
    assert (made["memory"] / "cgroup.clone_children").read_text() == "1"
    assert not (made["blkio"] / "cgroup.clone_children").exists()


@pytest.mark.usefixtures("namespace_of_user")
@pytest.mark.parametrize("counts_below", [True, False])
def test_no_server_leaves_its_limit_of_memory_on_an_older_kernel(
    shim: Shim, counts_below: bool
) -> None:
    (shim.folder / "mounts").write_text(OF_V1)
    for name in ("memory", "systemd"):
        made = shim.folder / "groups" / name / "docker" / ID
        made.mkdir(parents=True)
        for file in ("cgroup.procs", "tasks"):
            (made / file).touch()
    (shim.folder / "groups/memory/memory.use_hierarchy").write_text(f"{int(counts_below)}\n")
    nesting_config(shim, SHM, groups("ro"))
    assert shim.create().returncode == 0
    places = [mount["destination"] for mount in shim.mounts]
    assert "/sys/fs/cgroup/systemd" in places
    assert ("/sys/fs/cgroup/memory" in places) is counts_below


@pytest.mark.usefixtures("namespace_of_user")
@pytest.mark.parametrize("delegated", [True, False])
def test_an_engine_inside_writes_its_groups_of_v2(shim: Shim, delegated: bool) -> None:
    (shim.folder / "groups").mkdir()
    (shim.folder / "groups/cgroup.controllers").touch()
    options = "rw,nosuid,nsdelegate" if delegated else "rw,nosuid"
    (shim.folder / "mounts").write_text(f"cgroup2 /sys/fs/cgroup cgroup2 {options} 0 0\n")
    nesting_config(shim, SHM, groups("ro"))
    done = shim.create()
    if delegated:
        assert done.returncode == 0, done.stderr
        assert shim.mounts == [SHM, groups("rw")]
    else:
        assert "an engine in a server needs" in shim.refusal(done)


@pytest.mark.usefixtures("namespace_of_user")
@pytest.mark.parametrize(
    "change",
    [
        {"readonlyPaths": ["/proc/sys"]},
        {"namespaces": [{"type": "network"}, {"type": "cgroup"}]},
        {"namespaces": [{"type": "network"}, {"type": "user"}]},
    ],
)
def test_no_other_server_divides_its_groups(shim: Shim, change: dict[str, Any]) -> None:
    (shim.folder / "mounts").write_text(OF_V1)
    nesting_config(shim, SHM, groups("ro"), **change)
    done = shim.create()
    assert done.returncode == 0, done.stderr
    assert shim.mounts == [SHM, groups("ro")]


@pytest.mark.parametrize("capability", ["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"])
def test_power_over_a_user_namespace_needs_one(shim: Shim, capability: str) -> None:
    """The container may have been created while its server had a user namespace."""
    linux = {"namespaces": [{"type": "network"}], "seccomp": {"defaultAction": "x"}}
    process = {"capabilities": {"bounding": ["CAP_CHOWN", capability]}}
    shim.write_config(linux=linux, process=process)
    assert "need a user namespace" in shim.refusal(shim.create())


def test_a_server_with_the_power_of_the_hosts_root_has_no_profile(shim: Shim) -> None:
    process = {"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}}
    shim.write_config(linux={"namespaces": [{"type": "network"}]}, process=process)
    assert shim.create().returncode == 0


# -- ids of its own -------------------------------------------------------------------------------

OWN_IDS = (1879048192, 65536)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        # the engine's default
        ("0 2147483647", "0 65535"),
        ("100 200", "100 200"),
        ("100\t65536", "100 65535"),
        ("65535 65535", "65535 65535"),
        ("70000 80000", "1 0"),
        ("1 0", "1 0"),
        ("", ""),
        ("x 5", "x 5"),
    ],
)
def test_groups_that_may_ping(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, value: str, found: str
) -> None:
    monkeypatch.setattr(create, "_is_user_namespace", lambda _path: True)
    name = "net.ipv4.ping_group_range"
    shim.write_config(linux={"sysctl": {name: value, "net.ipv4.ip_forward": "0"}})
    config = create.Configuration(str(shim.bundle / "config.json"), ID)
    create.add_user_namespace(config, ID, "/run/x", OWN_IDS)
    assert config.linux["sysctl"] == {name: found, "net.ipv4.ip_forward": "0"}


@pytest.mark.parametrize("nests", [False, True])
def test_a_start_that_is_refused_leaves_no_control_group(shim: Shim, nests: bool) -> None:
    path = shim.program.parent / "create.py"
    text = path.read_text()
    check = "if not _is_user_namespace(path):"
    assert check in text
    path.write_text(text.replace(check, "if False:"))
    first, count = OWN_IDS
    own = json.loads(shim.record()) | {"ids": {"first": first, "count": count}}
    (shim.records / ID).write_text(json.dumps(own))
    (shim.folder / "mounts").write_text(OF_V1)
    for name in ("memory", "systemd"):
        (shim.folder / "groups" / name).mkdir(parents=True)
    linux = {
        "cgroupsPath": f"/docker/{ID}",
        "namespaces": [{"type": "network"}, {"type": "cgroup"}],
        "readonlyPaths": [] if nests else ["/proc/sys"],
    }
    shim.write_config(mounts=[SHM, groups("ro"), RUN], linux=linux)
    assert "needs the engine's storage driver overlay2" in shim.refusal(shim.create())
    assert [*shim.folder.glob("groups/*/*")] == []
