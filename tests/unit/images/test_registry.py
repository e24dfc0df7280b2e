# SPDX-License-Identifier: Apache-2.0
"""The images that a tenant may name in a registry, and the registries that serve them."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from novadocker import exception
from novadocker.virt.docker.images import registry
from novadocker.virt.docker.images.registry import Reference
from novadocker.virt.docker.model import EngineInfo
from tests.unit.fakes import INFO

DIGEST = "sha256:" + "5" * 64
ALLOWED = frozenset({"docker.io", "reg.example.com", "reg.example.com:5000", "localhost:5000"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("busybox", Reference("docker.io", "library/busybox")),
        ("me/app:1.2", Reference("docker.io", "me/app", "1.2")),
        ("reg.example.com/a/b_c/d:v1", Reference("reg.example.com", "a/b_c/d", "v1")),
        ("reg.example.com:5000/a", Reference("reg.example.com:5000", "a")),
        (f"localhost:5000/a@{DIGEST}", Reference("localhost:5000", "a", "latest", DIGEST)),
        (f"reg.example.com/a:t@{DIGEST}", Reference("reg.example.com", "a", "t", DIGEST)),
    ],
)
def test_references(text: str, expected: Reference) -> None:
    assert registry.parse(text, "id", ALLOWED) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "UPPER", "a b", "a/../b", "a:", "a@sha256:12", "http://reg.example.com/a", "a?b=c"),
        *("reg.example.com/", "user:pass@reg.example.com/a", "a\n", "a" * 600, "a/b/"),
    ],
)
def test_malformed_references(text: str) -> None:
    with pytest.raises(exception.InvalidImage, match="not a valid image reference"):
        registry.parse(text, "id", ALLOWED)


@pytest.mark.parametrize(
    "text", ["169.254.169.254/a", "reg.example.com:1/a", "localhost/a", "x.reg.example.com/a"]
)
def test_registries_that_are_not_allowed(text: str) -> None:
    with pytest.raises(exception.InvalidImage, match="not allowed"):
        registry.parse(text, "id", ALLOWED)


@dataclass
class FakeEngine:
    """A fake engine with registries by name; each has a digest or none."""

    digests: dict[str, str]
    asked: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def info(self) -> EngineInfo:
        return replace(INFO, containerd_store=True, containerd_address=SHARED)

    def resolve_digest(self, name: str, source: str, _credentials: str) -> str:
        self.asked.append(f"resolve {name}")
        if source not in self.digests:
            raise exception.EngineError(operation="it", reason="no answer")
        return self.digests[source]

    def pull_image(
        self, repository: str, digest: str, source: str, _credentials: str, folder: str, most: int
    ) -> None:
        self.asked.append(f"pull {repository}@{digest}")
        # The file system on which containerd unpacks, not the engine's.
        assert (folder, most) == ("/var/lib/containerd", MOST)
        if self.failure is not None:
            raise self.failure
        if self.digests.get(source) != digest:
            raise exception.EngineError(operation="it", reason="unknown digest")


MOST = 1 << 30
SHARED = "/run/containerd/containerd.sock"
SETTINGS = registry.registries(["r.example"], ["r.example = near:1, far:2"], "")


def test_mirrors_are_asked_in_order() -> None:
    engine = FakeEngine({"far:2": DIGEST})
    found = registry.pull(engine, Reference("r.example", "a", "t"), SETTINGS, MOST)  # type: ignore[arg-type]
    assert found == f"far:2/a@{DIGEST}"
    assert engine.asked == ["resolve near:1/a:t", "resolve far:2/a:t", f"pull far:2/a@{DIGEST}"]


def test_a_digest_is_not_looked_up() -> None:
    engine = FakeEngine({"near:1": "sha256:" + "6" * 64, "r.example": DIGEST})
    reference = Reference("r.example", "a", "t", DIGEST)
    assert registry.pull(engine, reference, SETTINGS, MOST) == f"r.example/a@{DIGEST}"  # type: ignore[arg-type]
    assert [line.split()[0] for line in engine.asked] == ["pull"] * 3


def test_nobody_has_it() -> None:
    answers = r"near:1: no answer; far:2: .*r\.example: no"
    with pytest.raises(exception.EngineError, match=rf"refused to pull the image: {answers}"):
        registry.pull(FakeEngine({}), Reference("r.example", "a"), SETTINGS, MOST)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "failure",
    [
        exception.PullCutOff(name="a", reason="no room"),
        exception.ImageTooLarge(name="a", size=MOST + 1, most=MOST),
    ],
    ids=["room", "size"],
)
def test_an_image_that_is_too_large_is_not_pulled_again(failure: Exception) -> None:
    engine = FakeEngine({"near:1": DIGEST, "far:2": DIGEST, "r.example": DIGEST}, failure=failure)
    with pytest.raises(type(failure)):
        registry.pull(engine, Reference("r.example", "a", "t"), SETTINGS, MOST)  # type: ignore[arg-type]
    assert engine.asked == ["resolve near:1/a:t", f"pull near:1/a@{DIGEST}"]


@pytest.mark.parametrize("digest", ["", DIGEST], ids=["tag", "digest"])
def test_only_what_is_verified_is_pulled(tmp_path: Path, digest: str) -> None:
    other = "sha256:" + "6" * 64
    engine = FakeEngine({"near:1": digest or other, "r.example": DIGEST})
    script = f'echo "$1" >>{tmp_path}/asked; test "$1" = r.example/a@{DIGEST}'
    settings = registry.registries(
        ["r.example"], ["r.example = near:1"], "", ["sh", "-c", script, "verify"]
    )
    reference = Reference("r.example", "a", "t", digest)
    assert registry.pull(engine, reference, settings, MOST) == f"r.example/a@{DIGEST}"  # type: ignore[arg-type]
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"near:1/a@{digest or other}",
        f"r.example/a@{DIGEST}",
    ]
    pulls = [line for line in engine.asked if line.startswith("pull")]
    assert pulls == [f"pull r.example/a@{DIGEST}"]


def test_nothing_is_verified() -> None:
    engine = FakeEngine({"r.example": DIGEST})
    settings = registry.registries(["r.example"], [], "", ["false"])
    with pytest.raises(exception.EngineError, match=r"r\.example: the cloud's .* refuses"):
        registry.pull(engine, Reference("r.example", "a", "t"), settings, MOST)  # type: ignore[arg-type]
    assert engine.asked == ["resolve r.example/a:t"]


def test_a_host_that_can_not_verify(tmp_path: Path) -> None:
    engine = FakeEngine({"r.example": DIGEST})
    settings = registry.registries(["r.example"], ["r.example=near:1"], "", [f"{tmp_path}/none"])
    with pytest.raises(exception.VerificationFailed, match=r"r\.example: this host cannot run"):
        registry.pull(engine, Reference("r.example", "a", "t"), settings, MOST)  # type: ignore[arg-type]
    assert not [line for line in engine.asked if line.startswith("pull")]


def test_malformed_mirrors() -> None:
    with pytest.raises(exception.InvalidConfiguration, match="is not REGISTRY=MIRROR"):
        registry.registries([], ["near:1"], "")
