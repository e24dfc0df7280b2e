# SPDX-License-Identifier: Apache-2.0
"""Pure: the verification of an image's signature that the cloud or a server's owner demands.

Nova's client of Glance verifies the signature while it downloads the image. It decides by the same
options (``nova.image.glance``, ``_get_verifier``).
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Options(Protocol):
    """The options of Nova's group ``glance`` that demand signatures."""

    verify_glance_signatures: bool
    enable_certificate_validation: bool
    default_trusted_certificate_ids: list[str]


@dataclass(frozen=True)
class Demand:
    """The verification that an image must pass before its first boot on a host.

    :ivar signed: the image must have a valid signature
    :ivar certificates: ids of the certificates of which one must have issued the signer's
        certificate; empty accepts each signer
    """

    signed: bool = False
    certificates: frozenset[str] = frozenset()

    @property
    def mark(self) -> str:
        """Return the suffix of the tag of an image that has passed the verification.

        An image that was loaded without it has another tag, so it is loaded and verified anew.
        """
        if self.certificates:
            ids = "\n".join(sorted(self.certificates))
            return f"-{hashlib.sha256(ids.encode()).hexdigest()[:12]}"
        return "-signed" if self.signed else ""


def demand(options: Options, certificates: Iterable[str]) -> Demand:
    """Return the verification that an image must pass.

    :param certificates: the ids of the server's trusted image certificates
    """
    trusted = frozenset(certificates)
    if not trusted and options.enable_certificate_validation:
        trusted = frozenset(options.default_trusted_certificate_ids or ())
    return Demand(bool(trusted) or options.verify_glance_signatures, trusted)
