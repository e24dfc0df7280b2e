# SPDX-License-Identifier: Apache-2.0
"""The bodies of requests that the driver makes (``virt/docker/engine/requests``); pure.

A judgement raises ``Refused`` unless a body is one that the driver can make. The engine gets the
body that was judged, written anew.
"""

from dataclasses import dataclass
from typing import Any

from novadocker import extra_specs, naming
from novadocker.engine_proxy import forms
from novadocker.engine_proxy.forms import Form, Refused
from novadocker.engine_proxy.policy import Host, Policy
from novadocker.extra_specs import Nesting
from novadocker.virt.docker.engine import seccomp
from novadocker.virt.docker.engine.masks import MASKED_PATHS
from novadocker.virt.docker.limits import capabilities as lists

# The paths of these come from privileged functions, and only root can change them.
_DRIVES = r"/var/lib/novadocker/config-drives/(?!\.)[A-Za-z0-9._-]{1,255}"
_DRIVE_LINKS = "/run/novadocker/drives"
_SHORT_NAMES = "/run/novadocker/l"

_DRIVE_TARGETS = ("/config-2", "/var/lib/cloud/seed/config_drive")
_DRIVE_DEVICE = "/dev/disk/by-label/config-2"
_LXCFS_PATHS = (
    *(f"proc/{name}" for name in ("cpuinfo", "diskstats", "loadavg", "meminfo")),
    *(f"proc/{name}" for name in ("slabinfo", "stat", "swaps", "uptime")),
    "sys/devices/system/cpu",
)
_RESCUE = "/rescue"

_NO_PROFILES = ["apparmor=unconfined", "seccomp=unconfined"]
_TEXT = r"[^\0]*"
_CPUS = r"[0-9,-]*"

_RESOURCES: dict[str, Form] = {
    "CpuShares": forms.integer(),
    "CpuPeriod": forms.integer(),
    "CpuQuota": forms.integer(-1),
    "CpusetCpus": forms.text(_CPUS),
    "CpusetMems": forms.text(_CPUS),
    "Memory": forms.integer(),
    "MemorySwap": forms.integer(),
    "PidsLimit": forms.integer(1),
}

_ULIMIT = forms.fields(
    {
        "Name": forms.equal(*(limit.resource for limit in extra_specs.ULIMITS)),
        "Soft": forms.integer(-1),
        "Hard": forms.integer(-1),
    }
)

_LOG = forms.fields(
    {
        "Type": forms.equal("json-file"),
        "Config": forms.fields(
            {"max-size": forms.text("[0-9]{1,9}k"), "max-file": forms.text("[0-9]{1,3}")}
        ),
    }
)


def _sysctl(spec: extra_specs.Sysctl) -> Form:
    def form(value: Any) -> None:
        try:
            spec.parse(value)
        except (TypeError, ValueError) as error:
            raise Refused(str(error)) from error

    return form


_SYSCTLS = forms.fields({}, {spec.sysctl: _sysctl(spec) for spec in extra_specs.SYSCTLS})

_update = forms.fields(_RESOURCES)

_execution = forms.fields(
    {
        "Privileged": forms.equal(False),
        "User": forms.equal("0"),
        "Cmd": forms.array(forms.text(_TEXT)),
    },
    {
        "Container": forms.text(_TEXT),
        "Tty": forms.equal(True),
        "AttachStdin": forms.equal(True),
        "AttachStdout": forms.equal(True),
        "AttachStderr": forms.equal(True),
        "Env": forms.equal(["TERM=xterm"]),
        "detachKeys": forms.text(r"[a-z@^,-]{1,80}"),
    },
)

_terminal = forms.fields({"Tty": forms.equal(True), "Detach": forms.equal(False)})


def update(body: Any) -> None:
    """Judge a change of a container's limits."""
    _update(body)


def execution(body: Any) -> None:
    """Judge the creation of an exec."""
    _execution(body)


def terminal(body: Any) -> None:
    """Judge the start of an exec."""
    _terminal(body)


def container(body: Any, uuid: str, policy: Policy, host: Host) -> None:
    """Judge the creation of an instance's container.

    :param uuid: of the instance whose name the container gets
    """
    labels = _labels(uuid)
    _container(policy, labels)(body)
    given = body["HostConfig"]
    mounts = _Mounts(uuid, policy, host, body["Labels"][naming.LABEL_RESCUE] == "1")
    for number, mount in enumerate(given["Mounts"]):
        try:
            mounts.judge(mount)
        except Refused as error:
            raise Refused(f"HostConfig: Mounts: {number}: {error}") from None
    _judge_isolation(body, uuid, policy, host)


def _labels(uuid: str) -> Form:
    return forms.fields(
        {
            naming.LABEL_UUID: forms.equal(uuid),
            naming.LABEL_SCHEMA: forms.equal(naming.SCHEMA),
            naming.LABEL_RESCUE: forms.equal("", "1"),
            naming.LABEL_NAME: forms.text(_TEXT),
            naming.LABEL_PROJECT: forms.text(_TEXT),
            naming.LABEL_FLAVOR: forms.text(_TEXT),
            naming.LABEL_HOST: forms.text(_TEXT),
        }
    )


def _container(policy: Policy, labels: Form) -> Form:
    """Return the form of the body, without the parts that depend on other parts."""
    capabilities = (
        *lists.CAPABILITIES,
        *extra_specs.CAPABILITIES,
        *extra_specs.NAMESPACE_CAPABILITIES,
        *lists.NESTING,
        lists.ALL,
    )
    host_config = forms.fields(
        {
            **_RESOURCES,
            "NetworkMode": forms.equal("none"),
            "Runtime": forms.equal(policy.runtime),
            "RestartPolicy": forms.equal({"Name": "no"}),
            "StorageOpt": forms.mapping("size", "[0-9]{1,20}"),
            "CapDrop": forms.equal(["ALL"]),
            "CapAdd": forms.array(forms.equal(*capabilities)),
            "OomScoreAdj": forms.integer(),
            "Ulimits": forms.array(_ULIMIT),
            "SecurityOpt": forms.array(forms.text(_TEXT)),
            "Sysctls": _SYSCTLS,
            "ShmSize": forms.integer(1),
            "Mounts": forms.array(_anything),
            "Devices": forms.array(_anything),
            "LogConfig": _LOG,
        },
        {
            "CgroupnsMode": forms.equal("private"),
            "Tmpfs": forms.mapping(r"/[a-z/]+", r"[a-z0-9=,]+"),
            "MaskedPaths": forms.equal(list(MASKED_PATHS)),
            "ReadonlyPaths": forms.equal([]),
        },
    )
    return forms.fields(
        {
            "Image": forms.text(naming.DIGEST.pattern),
            "Hostname": forms.text(r"[A-Za-z0-9.-]{0,64}"),
            "Labels": labels,
            "Env": forms.array(forms.text(_TEXT)),
            "Tty": forms.equal(True),
            "OpenStdin": forms.equal(True),
            "NetworkDisabled": forms.equal(True),
            "HostConfig": host_config,
        },
        {
            "Entrypoint": forms.array(forms.text(_TEXT)),
            "Cmd": forms.array(forms.text(_TEXT)),
            "StopSignal": forms.text("[A-Z0-9+-]{1,16}"),
            "Volumes": forms.equal({path: {} for path in lists.NESTING_VOLUMES}),
        },
    )


def _anything(_value: Any) -> None:
    """Accept every value, which another function judges."""


class _Mounts:
    """The mounts that the driver gives to one container."""

    def __init__(self, uuid: str, policy: Policy, host: Host, rescues: bool) -> None:
        self._uuid = uuid
        self._host = host
        self._rescues = rescues
        lxcfs = [
            self._bind(forms.equal(f"{policy.lxcfs_folder}/{path}"), forms.equal(f"/{path}"), True)
            for path in _LXCFS_PATHS
        ]
        drive = forms.text(rf"{_DRIVES}/{uuid}/files")
        self._usual = forms.either(self._bind(drive, forms.equal(*_DRIVE_TARGETS), True), *lxcfs)

    @staticmethod
    def _bind(source: Form, target: Form, read_only: bool) -> Form:
        return forms.fields(
            {
                "Type": forms.equal("bind"),
                "Source": source,
                "Target": target,
                "ReadOnly": forms.equal(read_only),
            }
        )

    def judge(self, mount: Any) -> None:
        """Judge one mount. A stand-in also gets the files of the server that it rescues."""
        try:
            self._usual(mount)
        except Refused:
            if not self._rescues:
                raise
            self._rescue()(mount)

    def _rescue(self) -> Form:
        aside = naming.container_name(self._uuid) + naming.ASIDE
        if self._host.server(aside) != self._uuid:
            raise Refused(f"container {aside} belongs to another instance")
        directories, volumes = self._host.directories(aside)
        names = [f"{_SHORT_NAMES}/{self._uuid[:8]}/{n:x}" for n in range(len(directories))]
        overlay = forms.fields(
            {
                "Type": forms.equal("volume"),
                "Target": forms.equal(_RESCUE),
                "VolumeOptions": forms.fields(
                    {
                        "NoCopy": forms.equal(True),
                        "Labels": forms.equal({naming.LABEL_OVERLAY: "1"}),
                        "DriverConfig": forms.fields(
                            {
                                "Name": forms.equal("local"),
                                "Options": forms.equal(
                                    *(_overlay(given) for given in (directories, names) if given)
                                ),
                            }
                        ),
                    }
                ),
            }
        )
        volume = self._bind(forms.equal(*volumes), forms.text(rf"{_RESCUE}/{_TEXT}"), False)
        return forms.either(overlay, volume)


def _overlay(directories: list[str]) -> dict[str, str]:
    upper, work, *lowers = directories
    options = f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work},index=off"
    return {"type": "overlay", "device": "overlay", "o": options}


@dataclass(frozen=True)
class _Isolation:
    capabilities: tuple[str, ...]
    devices: tuple[str, ...]
    nesting: Nesting


def _nesting(given: dict[str, Any]) -> Nesting:
    if given["SecurityOpt"] == _NO_PROFILES:
        return Nesting.HOST
    if "ReadonlyPaths" in given:
        return Nesting.UNPRIVILEGED
    return Nesting.NO


def _judge_isolation(body: dict[str, Any], uuid: str, policy: Policy, host: Host) -> None:
    """Judge capabilities, devices, volumes and profiles, which depend on one another."""
    given = body["HostConfig"]
    capabilities = given["CapAdd"]
    if capabilities != sorted(set(capabilities)):
        raise Refused("HostConfig: CapAdd: the capabilities are not in order")
    drive = {
        "PathOnHost": f"{_DRIVE_LINKS}/{uuid}",
        "PathInContainer": _DRIVE_DEVICE,
        "CgroupPermissions": "r",
    }
    own = {
        path: {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}
        for path in policy.devices
    }
    allowed = forms.equal(drive, *own.values())
    devices = []
    for device in given["Devices"]:
        try:
            allowed(device)
        except Refused as error:
            raise Refused(f"HostConfig: Devices: {error}") from None
        if device != drive:
            devices.append(device["PathOnHost"])
    nesting = _nesting(given)
    if nesting == Nesting.HOST:
        # Without user namespaces, such a server has the power of the host's root.
        if not host.user_namespaces():
            raise Refused("HostConfig: docker:nesting=host needs an engine with userns-remap")
        return
    # The runtime shim starts no other server with such capabilities and without a user namespace.
    nests = nesting == Nesting.UNPRIVILEGED
    expected = capabilities == [lists.ALL] if nests else lists.ALL not in capabilities
    if not expected or nests != ("Volumes" in body):
        raise Refused("HostConfig: CapAdd: the capabilities are not those of nested containers")
    isolation = _Isolation(tuple(capabilities), tuple(devices), nesting)
    mounts = nests or "SYS_ADMIN" in capabilities
    above = ["apparmor=unconfined"] if mounts else []
    if given["SecurityOpt"] != [*above, f"seccomp={seccomp.profile(isolation)}"]:
        raise Refused("HostConfig: SecurityOpt: the profiles are not the driver's")
