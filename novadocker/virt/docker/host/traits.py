# SPDX-License-Identifier: Apache-2.0
"""Calculation of the host's traits for Placement; pure."""

from collections.abc import Collection, Iterable, Mapping

import os_traits

from novadocker.virt.docker.host.topology import Cell

DOCKER = "CUSTOM_HYPERVISOR_DOCKER"
"""Trait of all hosts of this driver; a flavor requires it by ``trait:CUSTOM_HYPERVISOR_DOCKER``."""

DISK_QUOTA = "CUSTOM_DOCKER_DISK_QUOTA"
"""Trait of hosts that limit an instance's disk to the size in the flavor."""

USER_NAMESPACE = "CUSTOM_DOCKER_USER_NAMESPACE"
"""Trait of hosts that can give each instance a user namespace of its own."""

# Features of x86 that os_traits names differently than the kernel (cpufeatures.h).
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
# A container gets no device for these features.
_NOT_INSIDE = ("SGX", "SVM", "VMX")


def traits(
    architecture: str,
    features: Iterable[str],
    cells: Collection[Cell],
    sized_disks: bool,
    user_namespaces: bool,
) -> dict[str, bool]:
    """Return the traits that the driver sets (True) or removes (False).

    :param architecture: Nova's name of the architecture
    :param features: the words of the line ``flags`` in /proc/cpuinfo
    """
    threads = any(len(core) > 1 for cell in cells for core in cell.cores)
    return {
        DOCKER: True,
        DISK_QUOTA: sized_disks,
        USER_NAMESPACE: user_namespaces,
        os_traits.HW_CPU_HYPERTHREADING: threads,
        **_known("HW_ARCH_", [architecture]),
        **_known("HW_CPU_X86_", [_feature(word) for word in features]),
    }


def _feature(word: str) -> str:
    name = word.replace("_", "")
    return _FEATURES.get(name, name)


def _known(prefix: str, names: Iterable[str]) -> Mapping[str, bool]:
    """Return the traits of these names that os_traits has, set to True."""
    family = set(os_traits.get_traits(prefix))
    found = {prefix + name.upper() for name in names if name.upper() not in _NOT_INSIDE}
    return dict.fromkeys(sorted(family & found), True)
