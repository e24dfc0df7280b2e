# SPDX-License-Identifier: Apache-2.0
"""The host's traits for Placement; pure."""

from collections.abc import Collection, Iterable, Mapping

import os_traits

from novadocker.virt.docker.host.topology import Cell

# marks hosts of this driver, for flavors that must land on one: trait:CUSTOM_HYPERVISOR_DOCKER
DOCKER = "CUSTOM_HYPERVISOR_DOCKER"
# marks hosts where a server can't write more than its flavor's disk
DISK_QUOTA = "CUSTOM_DOCKER_DISK_QUOTA"

# os_traits' words for features of x86 that the kernel calls otherwise (cpufeatures.h)
_FEATURES = {
    "aes": "AESNI",
    "bmi1": "BMI",
    "fma": "FMA3",
    "gfni": "AVX512GFNI",
    "pclmulqdq": "CLMUL",
    "pni": "SSE3",
    "shani": "SHA",
    "vaes": "AVX512VAES",
    "vpclmulqdq": "AVX512VPCLMULQDQ",
}
# a container gets no device to use them by
_NOT_INSIDE = ("SGX", "SVM", "VMX")


def traits(
    architecture: str, features: Iterable[str], cells: Collection[Cell], sized_disks: bool
) -> dict[str, bool]:
    """Return each trait that is the driver's to set or to remove, and whether the host has it.

    :param architecture: Nova's name for it
    :param features: the words of the line ``flags`` in /proc/cpuinfo
    """
    threads = any(len(core) > 1 for cell in cells for core in cell.cores)
    return {
        DOCKER: True,
        DISK_QUOTA: sized_disks,
        os_traits.HW_CPU_HYPERTHREADING: threads,
        **_known("HW_ARCH_", [architecture]),
        **_known("HW_CPU_X86_", [_feature(word) for word in features]),
    }


def _feature(word: str) -> str:
    name = word.replace("_", "")
    return _FEATURES.get(name, name)


def _known(prefix: str, names: Iterable[str]) -> Mapping[str, bool]:
    """Return those traits of a family that os_traits has."""
    family = set(os_traits.get_traits(prefix))
    found = {prefix + name.upper() for name in names if name.upper() not in _NOT_INSIDE}
    return dict.fromkeys(sorted(family & found), True)
