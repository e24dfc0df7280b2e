# SPDX-License-Identifier: Apache-2.0
"""A server's container, and what a fake engine knows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from novadocker import naming
from novadocker.engine_proxy.forms import Refused
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.guest import config_drive
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import (
    ContainerSpec,
    Isolation,
    Limits,
    Mount,
    ResourceLimit,
    Storage,
)

UUID = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
NAME = f"nova-{UUID}"
CONTAINER = "c" * 64
STRANGER = "d" * 64
EXECUTION = "e" * 64
IMAGE = f"sha256:{'1' * 64}"
DRIVE = f"/var/lib/novadocker/config-drives/host-1/{UUID}/files"
ROOT = "/var/lib/docker"
STORAGE = Storage(
    driver="overlay2",
    upper=f"{ROOT}/overlay2/{'a' * 64}/diff",
    work=f"{ROOT}/overlay2/{'a' * 64}/work",
    lowers=tuple(f"{ROOT}/overlay2/l/{number:026}" for number in range(3)),
    volumes={"/data": f"{ROOT}/volumes/{'f' * 64}/_data"},
)

SPEC = ContainerSpec(
    name=NAME,
    image_id=IMAGE,
    hostname="web",
    labels={
        naming.LABEL_UUID: UUID,
        naming.LABEL_NAME: "instance-00000001",
        naming.LABEL_PROJECT: "project",
        naming.LABEL_FLAVOR: "d1.small",
        naming.LABEL_HOST: "host-1",
        naming.LABEL_SCHEMA: naming.SCHEMA,
        naming.LABEL_RESCUE: "",
    },
    runtime="novadocker",
    limits=Limits(
        cpu_shares=1024,
        memory_bytes=64 << 20,
        swap_bytes=0,
        pids=64,
        cpu_quota_us=50_000,
        cpuset_cpus=frozenset({0, 2}),
        cpuset_mems=frozenset({0}),
        disk_bytes=1 << 30,
    ),
    isolation=Isolation(
        capabilities=tuple(sorted((*isolation.CAPABILITIES, "NET_ADMIN"))),
        devices=("/dev/fuse",),
        resource_limits=(ResourceLimit("nofile", 10, -1),),
        shm_bytes=1 << 20,
        oom_score_adj=5,
        sysctls=(("net.core.somaxconn", "512"), ("kernel.sem", "250 32000 32 128")),
    ),
    console_log_max_mb=10,
    entrypoint=("/sbin/init",),
    command=("--x",),
    mounts=(
        *config_drive.mounts(DRIVE),
        Mount("/var/lib/lxcfs/proc/meminfo", "/proc/meminfo"),
        Mount("/var/lib/lxcfs/sys/devices/system/cpu", "/sys/devices/system/cpu"),
    ),
    devices=(Mount(f"/run/novadocker/drives/{UUID}", config_drive.DEVICE),),
    stop_signal="SIGRTMIN+3",
    environment={"product_name": "OpenStack Nova"},
    systemd=True,
)
"""A container that has a bit of everything."""

PLAIN = replace(
    SPEC, limits=Limits(1024, 64 << 20, 0, 64), isolation=Isolation(isolation.CAPABILITIES)
)
STAND_IN = rescue.stand_in(SPEC, STORAGE, UUID)
POWERFUL = tuple(
    replace(SPEC, isolation=isolation.isolation({f"docker:{name}": value}))
    for name, value in (
        ("nesting", "true"),
        ("nesting", "host"),
        ("capabilities", "SYS_ADMIN"),
        ("capabilities", "DAC_READ_SEARCH"),
    )
)
"""Containers that have power over their user namespace."""


@dataclass(frozen=True)
class Host:
    """Answers like an engine with one server, one other container and some images."""

    remaps_users: bool = False
    owner: str = UUID

    def user_namespaces(self) -> bool:
        return self.remaps_users

    def server(self, container: str) -> str:
        if container == STRANGER:
            raise Refused("the container belongs to no server")
        return self.owner

    def container_of(self, execution: str) -> str:
        return CONTAINER if execution == EXECUTION else STRANGER

    def directories(self, container: str) -> tuple[list[str], set[str]]:
        assert container == f"{NAME}{naming.ASIDE}"
        found = [STORAGE.upper, STORAGE.work, *STORAGE.lowers]
        return found, set(STORAGE.volumes.values())

    def image_names(self, image: str) -> list[str]:
        return [] if image == IMAGE else ["nginx:latest"]

    def volume_labels(self, volume: str) -> Mapping[str, str]:
        return {naming.LABEL_OVERLAY: "1"} if volume == "a" * 64 else {}
