# SPDX-License-Identifier: Apache-2.0
"""Images in registries: which registries are allowed, their mirrors and credentials.

A tag is resolved to a digest before the pull. The operator's command verifies the digest, and the
image is pulled by it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.images import verification

LOG = logging.getLogger(__name__)

DEFAULT_REGISTRY = "docker.io"

# https://github.com/distribution/reference
_WORD = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:(?P<registry>localhost(?::\d{{1,5}})?|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+(?::\d{{1,5}})?"
    rf"|[A-Za-z0-9-]+:\d{{1,5}})/)?(?P<path>{_WORD}(?:/{_WORD})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][\w.-]{0,127}))?"
    rf"(?:@(?P<digest>{naming.DIGEST.pattern}))?",
    re.ASCII,
)
_LONGEST = 512


@dataclass(frozen=True)
class Reference:
    """A reference to an image in a registry, by its digest if there is one, else by its tag."""

    registry: str
    path: str
    tag: str = "latest"
    digest: str = ""

    def at(self, registry: str) -> str:
        """Return the repository's name in a registry or in one of its mirrors."""
        return f"{registry}/{self.path}"


@dataclass(frozen=True)
class Registries:
    """The operator's options for registries.

    :ivar allowed: registries from which images may be pulled
    :ivar mirrors: for a registry, the mirrors to ask before it, in order
    :ivar credentials_path: a file in the format of ``docker login``; empty if there is none
    :ivar verify_command: verifies an image; empty if there is none
    """

    allowed: frozenset[str] = frozenset()
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    credentials_path: str = ""
    verify_command: tuple[str, ...] = ()


def registries(
    allowed: Iterable[str],
    mirrors: Iterable[str],
    credentials_path: str,
    verify_command: Iterable[str] = (),
) -> Registries:
    """Return the parsed options.

    :param mirrors: lines such as ``registry.example.com=mirror-a:5000,mirror-b:5000``
    :raises InvalidConfiguration: a line has no equals sign
    """
    found = {}
    for line in mirrors:
        registry, equals, hosts = line.partition("=")
        if not equals:
            raise exception.InvalidConfiguration(
                reason=f"[docker] registry_mirrors: {line!r} is not REGISTRY=MIRROR,..."
            )
        found[registry.strip()] = tuple(host.strip() for host in hosts.split(",") if host.strip())
    return Registries(frozenset(allowed), found, credentials_path, tuple(verify_command))


def parse(text: str, image_id: str, allowed: frozenset[str]) -> Reference:
    """Return the parsed reference of a tenant.

    :raises InvalidImage: the reference is malformed, or its registry is not allowed
    """
    match = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        raise exception.InvalidImage(
            image_id=image_id, reason="its property docker_image is not a valid image reference"
        )
    registry = match["registry"] or DEFAULT_REGISTRY
    if registry not in allowed:
        raise exception.InvalidImage(
            image_id=image_id, reason=f"images of the registry {registry[:80]} are not allowed here"
        )
    path = match["path"]
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    return Reference(registry, path, match["tag"] or "latest", match["digest"] or "")


def pull(engine: Engine, reference: Reference, settings: Registries, most: int) -> str:
    """Pull an image into the engine by its digest, without a tag, and return its name there.

    The mirrors are asked first, in order. After an error of one, the next one is asked, but not
    after one of the image's size, because each try would fill the disk again.

    :param most: bytes that the image may have when it is unpacked; 0 means no bound
    :raises ImageTooLarge: it has more
    :raises PullCutOff: this host has no room for it, or the pull takes too long
    :raises EngineError: neither a mirror nor the registry has the image, or the operator's command
        refuses it
    :raises VerificationFailed: no source has the image, and this host could not verify that of one
    """
    sources = [*settings.mirrors.get(reference.registry, ()), reference.registry]
    folder = filesystem.layers_root(engine.info())
    failures = []
    is_verified = True
    for source in sources:
        repository = reference.at(source)
        try:
            digest = reference.digest or engine.resolve_digest(
                f"{repository}:{reference.tag}", source, settings.credentials_path
            )
            if settings.verify_command:
                verification.verify(settings.verify_command, f"{repository}@{digest}")
            engine.pull_image(repository, digest, source, settings.credentials_path, folder, most)
        except (exception.EngineError, exception.ImageNotVerified) as error:
            LOG.warning("Failed to pull image %s from %s: %s", reference.path, source, error)
            failures.append(f"{source}: {error.kwargs.get('reason', error)}")
            is_verified = is_verified and not isinstance(error, exception.VerificationFailed)
        else:
            return f"{repository}@{digest}"
    reason = "; ".join(failures)
    if not is_verified:
        raise exception.VerificationFailed(name=reference.path, reason=reason)
    raise exception.EngineError(operation="to pull the image", reason=reason)
