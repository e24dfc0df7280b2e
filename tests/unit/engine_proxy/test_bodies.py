# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests: those of the driver pass, and no others."""

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from novadocker import extra_specs, naming
from novadocker.engine_proxy import bodies, forms
from novadocker.engine_proxy.forms import Refused
from novadocker.engine_proxy.policy import Policy
from novadocker.extra_specs import Nesting
from novadocker.virt.docker.engine import requests as engine_requests
from novadocker.virt.docker.engine import seccomp
from novadocker.virt.docker.limits import capabilities
from novadocker.virt.docker.model import ContainerSpec, Isolation, Limits
from tests import fuzz
from tests.unit.engine_proxy.samples import (
    DRIVE,
    OTHER,
    PLAIN,
    POWERFUL,
    SPEC,
    STAND_IN,
    UUID,
    Host,
)

POLICY = Policy(devices=frozenset({"/dev/fuse", "/dev/loop3"}))


def judge(body: Any, host: Host | None = None, policy: Policy = POLICY) -> None:
    bodies.container(json.loads(json.dumps(body)), UUID, policy, host or Host())


def made(spec: ContainerSpec) -> dict[str, Any]:
    return copy.deepcopy(engine_requests.container_config(spec))


def isolated(**changes: Any) -> ContainerSpec:
    return replace(SPEC, isolation=replace(SPEC.isolation, **changes))


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        PLAIN,
        STAND_IN,
        isolated(devices=("/dev/loop3",)),
        isolated(
            capabilities=tuple(sorted((*capabilities.CAPABILITIES, *extra_specs.CAPABILITIES)))
        ),
    ],
)
def test_the_containers_of_the_driver(spec: ContainerSpec) -> None:
    judge(made(spec))


def test_a_stand_in_of_a_server_with_many_layers() -> None:
    short = f"lowerdir=/run/novadocker/l/{UUID[:8]}/2:/run/novadocker/l/{UUID[:8]}/3:"
    short += f"/run/novadocker/l/{UUID[:8]}/4,upperdir=/run/novadocker/l/{UUID[:8]}/0,"
    short += f"workdir=/run/novadocker/l/{UUID[:8]}/1,index=off"
    overlay = replace(STAND_IN.overlays[0], options=short)
    judge(made(replace(STAND_IN, overlays=(overlay,))))


def test_each_part_of_a_specification_is_in_the_sample() -> None:
    """A part that is added to the driver needs a form here, or the proxy refuses all servers."""
    empty = {
        f"{type(part).__name__}.{field.name}"
        for part in (SPEC, SPEC.limits, SPEC.isolation)
        for field in dataclasses.fields(part)
        if not getattr(part, field.name)
    }
    # STAND_IN has overlays. The others are not for the engine, or have a test of their own.
    assert empty == {
        "ContainerSpec.overlays",
        "Limits.swap_bytes",
        "Limits.inbound",
        "Limits.outbound",
        "Isolation.volumes",
    }
    assert {Limits, Isolation} == {type(SPEC.limits), type(SPEC.isolation)}


def setting(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets a value in a body; components of ``path`` are divided by /."""

    def change(body: Any) -> None:
        *parents, last = path.split("/")
        for name in parents:
            body = body[int(name) if isinstance(body, list) else name]
        body[int(last) if isinstance(body, list) else last] = value

    return change


def mounting(**fields: Any) -> Callable[[dict[str, Any]], None]:
    usual = {"Type": "bind", "Source": "/", "Target": "/mnt", "ReadOnly": True}
    return lambda body: body["HostConfig"]["Mounts"].append({**usual, **fields})


def device(path: str, inside: str = "", access: str = "rwm") -> Callable[[dict[str, Any]], None]:
    added = {"PathOnHost": path, "PathInContainer": inside or path, "CgroupPermissions": access}
    return lambda body: body["HostConfig"]["Devices"].append(added)


def overlay(options: str) -> dict[str, Any]:
    return {
        "Type": "volume",
        "Target": "/rescue",
        "VolumeOptions": {
            "NoCopy": True,
            "Labels": {naming.LABEL_OVERLAY: "1"},
            "DriverConfig": {
                "Name": "local",
                "Options": {"type": "overlay", "device": "overlay", "o": options},
            },
        },
    }


def with_overlay(body: dict[str, Any]) -> None:
    body["HostConfig"]["Mounts"].append(overlay("lowerdir=/etc:/,upperdir=/root,workdir=/w"))


def with_all_beside(*others: str) -> Callable[[dict[str, Any]], None]:
    """Return a function that adds all capabilities, named among others, and their profile."""
    names = tuple(sorted(("ALL", *others)))

    def change(body: dict[str, Any]) -> None:
        profile = seccomp.profile(replace(PLAIN.isolation, capabilities=names))
        above = ["apparmor=unconfined"] if "SYS_ADMIN" in names else []
        body["HostConfig"] |= {
            "CapAdd": list(names),
            "SecurityOpt": [*above, f"seccomp={profile}"],
        }

    return change


WIDE = json.dumps({"defaultAction": "SCMP_ACT_ALLOW"})
REFUSED = {
    "privileged": setting("HostConfig/Privileged", True),
    # Go's JSON decoder ignores the case of names.
    "privileged in another case": setting("HostConfig/pRIVILEGED", True),
    "another HostConfig in another case": setting("hostconfig", {"Privileged": True}),
    "network of the host": setting("HostConfig/NetworkMode", "host"),
    "network of a container": setting("HostConfig/NetworkMode", "container:x"),
    "processes of the host": setting("HostConfig/PidMode", "host"),
    "IPC of the host": setting("HostConfig/IpcMode", "host"),
    "UTS of the host": setting("HostConfig/UTSMode", "host"),
    "users of the host": setting("HostConfig/UsernsMode", "host"),
    "control groups of the host": setting("HostConfig/CgroupnsMode", "host"),
    "another parent of control groups": setting("HostConfig/CgroupParent", "/"),
    "another runtime": setting("HostConfig/Runtime", "runc"),
    "a restart policy": setting("HostConfig/RestartPolicy", {"Name": "always"}),
    "binds": setting("HostConfig/Binds", ["/:/host"]),
    "volumes of another container": setting("HostConfig/VolumesFrom", ["x"]),
    "device rules": setting("HostConfig/DeviceCgroupRules", ["a *:* rwm"]),
    "device requests": setting("HostConfig/DeviceRequests", []),
    "masked paths": setting("HostConfig/MaskedPaths", []),
    "read-only paths": setting("HostConfig/ReadonlyPaths", []),
    "another log driver": setting("HostConfig/LogConfig/Type", "syslog"),
    "an option of the log driver": setting("HostConfig/LogConfig/Config/tag", "x"),
    "an unknown capability": setting("HostConfig/CapAdd", ["SYS_MODULE"]),
    "all capabilities": setting("HostConfig/CapAdd", ["ALL"]),
    "all capabilities and another": with_all_beside("CHOWN"),
    "all capabilities and SYS_ADMIN": with_all_beside("SYS_ADMIN"),
    "SYS_ADMIN without nesting": setting("HostConfig/CapAdd", ["SYS_ADMIN"]),
    "no capability dropped": setting("HostConfig/CapDrop", []),
    "a lower score": setting("HostConfig/OomScoreAdj", -1),
    "a boolean as a number": setting("HostConfig/Memory", True),
    "no limit of processes": setting("HostConfig/PidsLimit", -1),
    "a limit per user": setting("HostConfig/Ulimits/0/Name", "nproc"),
    "no seccomp profile": setting("HostConfig/SecurityOpt", ["seccomp=unconfined"]),
    "another seccomp profile": setting("HostConfig/SecurityOpt", [f"seccomp={WIDE}"]),
    "no profile at all": setting("HostConfig/SecurityOpt", []),
    "no AppArmor": setting("HostConfig/SecurityOpt/0", "apparmor=unconfined"),
    "new privileges and more": setting(
        "HostConfig/SecurityOpt", ["apparmor=unconfined", "seccomp=unconfined"]
    ),
    "an option of the storage driver": setting("HostConfig/StorageOpt", {"x": "1"}),
    "a bind of the root": mounting(),
    "the engine's socket": mounting(Source="/run/docker.sock"),
    "another server's config drive": mounting(
        Source=DRIVE.replace(UUID, OTHER), Target="/config-2"
    ),
    "a config drive elsewhere": mounting(Source=DRIVE, Target="/etc"),
    "a config drive that can be written": mounting(
        Source=DRIVE, Target="/config-2", ReadOnly=False
    ),
    "a detour": mounting(Source=f"/var/lib/novadocker/config-drives/../{UUID}/files"),
    "lxcfs elsewhere": mounting(Source="/var/lib/lxcfs/proc/meminfo", Target="/proc/stat"),
    "another directory as lxcfs": mounting(Source="/var/lib/lxcfs/cgroup", Target="/cgroup"),
    # nova-compute's user could put a link to any file of the host in its place.
    "a file of nova-compute's": mounting(
        Source=f"/var/lib/nova/loads/{UUID}", Target="/proc/loadavg"
    ),
    "options of a bind": mounting(
        Source=DRIVE, Target="/config-2", BindOptions={"Propagation": "shared"}
    ),
    "an overlay without a rescue": with_overlay,
    "a device that is not the operator's": device("/dev/sda"),
    "a device under another name": device("/dev/fuse", "/dev/x"),
    "another server's drive": device(f"/run/novadocker/drives/{OTHER}", access="r"),
    "a drive that can be written": device(
        f"/run/novadocker/drives/{UUID}", "/dev/disk/by-label/config-2"
    ),
    # The profile has no rule for the device.
    "a loop device": device("/dev/loop3"),
    "a sysctl of the host": setting("HostConfig/Sysctls/kernel.core_pattern", "|/x"),
    "a sysctl that makes a router": setting("HostConfig/Sysctls/net.ipv4.ip_forward", "1"),
    "a value of a sysctl": setting("HostConfig/Sysctls/net.core.somaxconn", "x"),
    "another user": setting("User", "x"),
    "volumes": setting("Volumes", {"/x": {}}),
    "a health check": setting("Healthcheck", {"Test": ["CMD", "x"]}),
    "networks": setting("NetworkingConfig", {}),
    "an image by name": setting("Image", "nginx"),
    "no network namespace of its own": setting("NetworkDisabled", False),
    "another label": setting("Labels/com.example", "x"),
    "another server's label": setting(f"Labels/{naming.LABEL_UUID}", OTHER),
    "another schema": setting(f"Labels/{naming.LABEL_SCHEMA}", "2"),
    "a number for a text": setting("Hostname", 1),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    body = made(SPEC)
    change(body)
    with pytest.raises(Refused):
        judge(body)


@pytest.mark.parametrize("name", sorted(made(SPEC).keys() - {"Entrypoint", "Cmd", "StopSignal"}))
def test_what_is_missing(name: str) -> None:
    body = made(SPEC)
    del body[name]
    with pytest.raises(Refused):
        judge(body)


REFUSED_RESCUES: dict[str, Callable[[dict[str, Any]], None]] = {
    "other directories": with_overlay,
    "another volume": mounting(Source="/etc", Target="/rescue/etc", ReadOnly=False),
    "a volume elsewhere": mounting(
        Source=f"/var/lib/docker/volumes/{'f' * 64}/_data", Target="/x", ReadOnly=False
    ),
}


@pytest.mark.parametrize("change", REFUSED_RESCUES.values(), ids=REFUSED_RESCUES.keys())
def test_what_a_stand_in_does_not_get(change: Callable[[dict[str, Any]], None]) -> None:
    body = made(STAND_IN)
    change(body)
    with pytest.raises(Refused):
        judge(body)


def test_a_stand_in_does_not_get_the_files_of_another_server() -> None:
    with pytest.raises(Refused, match="another instance"):
        judge(made(STAND_IN), Host(owner=OTHER))


EXECUTION = {
    "Container": "c",
    "User": "0",
    "Privileged": False,
    "Tty": True,
    "AttachStdin": True,
    "AttachStdout": True,
    "AttachStderr": True,
    "Cmd": ["/bin/sh", "-l"],
    "Env": ["TERM=xterm"],
    "detachKeys": "ctrl-@,ctrl-^",
}


def test_the_exec_of_a_console() -> None:
    bodies.execution(EXECUTION)


@pytest.mark.parametrize(
    "change", [{"Privileged": True}, {"privileged": True}, {"Cmd": "sh"}, {"WorkingDir": "/x"}]
)
def test_an_exec_that_no_console_makes(change: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        bodies.execution({**EXECUTION, **change})


def test_new_limits() -> None:
    bodies.update(engine_requests.update_body(SPEC.limits))
    for change in ({"RestartPolicy": {"Name": "always"}}, {"Devices": []}, {"Memory": "1"}):
        with pytest.raises(Refused):
            bodies.update({**engine_requests.update_body(SPEC.limits), **change})


@pytest.mark.parametrize(
    "text",
    [
        b'{"Tty": true, "Tty": false}',
        b'{"a": {"b": 1, "b": 1}}',
        b"[" * 100_000,
        b'{"a": NaN}',
        b"\xff",
        b"",
        b"{} {}",
    ],
)
def test_texts_that_are_not_read(text: bytes) -> None:
    with pytest.raises(Refused):
        forms.parse(text)


@pytest.mark.parametrize("spec", POWERFUL)
def test_power_over_a_user_namespace(spec: ContainerSpec) -> None:
    judge(made(spec), Host(remaps_users=True))
    if spec.isolation.nesting != Nesting.HOST:
        judge(made(spec), Host(remaps_users=False))
        return
    with pytest.raises(Refused, match="userns-remap"):
        judge(made(spec), Host(remaps_users=False))


@pytest.mark.parametrize(
    "change",
    [
        {"MaskedPaths": []},
        {"ReadonlyPaths": ["/proc/sys"]},
        {"CapAdd": ["MKNOD", "NET_ADMIN", "SYS_ADMIN"]},
        {"CapAdd": ["ALL", "CHOWN"]},
        {"SecurityOpt": ["apparmor=unconfined"]},
        {"SecurityOpt": ["seccomp=unconfined"]},
        {"SecurityOpt": ["apparmor=unconfined", f"seccomp={WIDE}"]},
    ],
)
def test_nesting_has_the_drivers_profile(change: dict[str, Any]) -> None:
    body = made(POWERFUL[0])
    body["HostConfig"] |= change
    with pytest.raises(Refused):
        judge(body, Host(remaps_users=True))


@pytest.mark.parametrize(
    "change",
    [
        {"HostConfig": {"ReadonlyPaths": []}},
        {"HostConfig": {"CapAdd": ["ALL"]}},
        {"Volumes": {path: {} for path in capabilities.NESTING_VOLUMES}},
    ],
)
def test_parts_of_nesting_are_for_nesting(change: dict[str, Any]) -> None:
    body = made(PLAIN)
    body["HostConfig"] |= change.get("HostConfig", {})
    body |= {name: value for name, value in change.items() if name != "HostConfig"}
    with pytest.raises(Refused):
        judge(body, Host(remaps_users=True))


def test_nesting_has_volumes_for_engines_inside() -> None:
    body = made(POWERFUL[0])
    del body["Volumes"]
    with pytest.raises(Refused):
        judge(body, Host(remaps_users=True))


BODIES = [json.dumps(made(spec)).encode() for spec in (SPEC, PLAIN, STAND_IN, *POWERFUL)]
# Pieces of JSON, and what would give a container power over the host.
WORDS = [
    *(b"{", b"[", b"]", b"}", b",", b":", b'"', b"null", b"true", b"-1", b"1e999", b"NaN"),
    *(b'"Privileged": true, ', b'"PidMode": "host", ', b'"Binds": ["/:/host"], ', b"SYS_ADMIN"),
    *(b"/", b"../", b"/etc", b"/dev/sda", b"bind", b"host", b"unconfined", OTHER.encode()),
]
JUDGEMENTS: dict[str, Callable[[Any], None]] = {
    "container": lambda body: bodies.container(body, UUID, POLICY, Host()),
    "update": bodies.update,
    "execution": bodies.execution,
    "terminal": bodies.terminal,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["HostConfig", "Labels", "Mounts", "Cmd", "User", "Tty", "Memory"]),
            inner,
            max_size=4,
        )
    ),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all parts of a body."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(found for key, part in inner for found in places(part, (*path, key)))]


@pytest.mark.parametrize("kind", JUDGEMENTS)
@fuzz.examples(60)
@given(fuzz.mutations(BODIES, WORDS))
@example(b"[" * 900 + b"]" * 900)
def test_a_body_of_any_content(kind: str, content: bytes) -> None:
    """A hostile client of the proxy may send any JSON."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return
    with fuzz.bounds():
        try:
            JUDGEMENTS[kind](body)
        except Refused:
            return
    assert powers(body) == []


@fuzz.examples(300)
@given(st.sampled_from([SPEC, PLAIN, STAND_IN]), st.integers(0, 1 << 16), JSON)
def test_a_body_with_any_part_replaced(spec: ContainerSpec, at: int, part: Any) -> None:
    body = made(spec)
    found = places(body)[1:]
    *above, last = found[at % len(found)]
    inner: Any = body
    for key in above:
        inner = inner[key]
    inner[last] = part
    with fuzz.bounds():
        try:
            JUDGEMENTS["container"](body)
        except Refused:
            return
    assert powers(body) == []


@fuzz.examples(200)
@given(
    st.sampled_from([SPEC, PLAIN, STAND_IN]),
    st.integers(0, 1 << 16),
    st.sampled_from(["Privileged", "PidMode", "Binds", "UTSMode", "VolumesFrom", "\0"]),
    st.sampled_from([True, "host", ["/:/host"]]) | JSON,
)
@example(SPEC, 0, "privileged", True)
def test_a_body_with_a_field_added(spec: ContainerSpec, at: int, name: str, value: Any) -> None:
    body = made(spec)
    found = [body["HostConfig"], body, *body["HostConfig"]["Mounts"]]
    inner = found[at % len(found)]
    assert name not in inner
    inner[name] = value
    with fuzz.bounds(), pytest.raises(Refused):
        JUDGEMENTS["container"](body)


def powers(body: Any) -> list[str]:
    """Return what would give a container that the proxy passed power over the host."""
    given_ = body.get("HostConfig", {})
    return [
        name
        for name in ("Privileged", "PidMode", "IpcMode", "Binds", "UTSMode", "VolumesFrom")
        if given_.get(name) not in (None, False, "", [], "private")
    ]
