# SPDX-License-Identifier: Apache-2.0
"""Platforms of images, and their variants that a host can run; pure.

The variants of amd64 are the levels of the x86-64 psABI (https://gitlab.com/x86-psABIs/x86-64-ABI),
of which each includes the lower ones.
"""

from collections.abc import Collection
from dataclasses import dataclass

# the levels above the lowest: the features of each, by the kernel's names in /proc/cpuinfo
_AMD64_LEVELS = {
    "v2": {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    "v3": {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
    "v4": {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
}
# the variant of images that name none
_LOWEST = {"amd64": "v1", "arm64": "v8"}


@dataclass(frozen=True)
class Platform:
    """The platform of a Linux host.

    :ivar architecture: Docker's name (``amd64``, ``arm64``)
    :ivar variants: variants of the architecture that the host runs, the best first; if empty, the
        variant of an image is ignored
    """

    architecture: str
    variants: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The name of the platform without a variant."""
        return f"linux/{self.architecture}"

    def rank(self, variant: str) -> int | None:
        """Return the rank of an image's variant on the host; None if the host can't run it.

        :param variant: empty if the image names none
        :returns: 0 for the best variant
        """
        if not self.variants:
            return 0
        wanted = variant or _LOWEST[self.architecture]
        if self.architecture == "arm64":
            # Builders also write "8", or name extensions (v8.2), which no program here compares.
            return 0 if wanted in ("8", "v8") else 1
        return self.variants.index(wanted) if wanted in self.variants else None


def host_platform(architecture: str, features: Collection[str]) -> Platform:
    """Return the platform of a host.

    :param architecture: Docker's name
    :param features: the words of the line ``flags`` in /proc/cpuinfo
    """
    if architecture not in _LOWEST:
        return Platform(architecture)
    variants = [_LOWEST[architecture]]
    if architecture == "amd64":
        for level, needed in _AMD64_LEVELS.items():
            if not needed.issubset(features):
                break
            variants.append(level)
    return Platform(architecture, tuple(reversed(variants)))


def any_variant(architecture: str) -> Platform:
    """Return the platform of a host that runs all variants of an architecture."""
    return host_platform(architecture, set().union(*_AMD64_LEVELS.values()))
