# SPDX-License-Identifier: Apache-2.0
"""Signatures of images: real certificates, verified by Nova's client while the image arrives."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects

from novadocker import exception
from novadocker.virt.docker.images import signatures
from novadocker.virt.docker.images import store as images_store
from tests import signed_images
from tests.signed_images import KeyManager, Served
from tests.unit.images.test_store import LOADED, folder, left_in
from tests.unit.images.test_streaming import ARCHIVE, Engine

__all__ = ["folder"]

ABSENT = "c0ffee00-7a64-4ed7-9f28-6a5a9a5e31c1"


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> KeyManager:
    found = KeyManager()
    monkeypatch.setattr("cursive.signature_utils.key_manager.API", lambda: found)
    return found


class World:
    """A store on one host, and the Glance of its images."""

    def __init__(self, folder: Path, options: Any) -> None:
        self.folder, self.options = folder, options
        self.context = nova_context.RequestContext("user", "p1", auth_token="token")
        self.engine = Engine()
        self.properties: dict[str, str] = {}
        self.image: Served

    @property
    def store(self) -> images_store.ImageStore:
        return images_store.ImageStore(self.engine, "x86_64")  # type: ignore[arg-type]

    @contextmanager
    def serving(self, properties: dict[str, str]) -> Iterator[None]:
        self.properties = dict(properties)
        with signed_images.served(ARCHIVE, self.properties) as self.image:
            self.options(group="glance", api_servers=[self.image.url], num_retries=0)
            yield

    def boot(self, *certificates: str) -> str:
        trusted = objects.TrustedCerts(ids=list(certificates)) if certificates else None
        return self.store.ensure(self.context, self.image.meta, trusted).id

    def check_nothing_left(self) -> None:
        assert b"RepoTags" not in self.engine.sent
        assert (self.engine.tags, left_in(self.folder)) == ({}, [])


@pytest.fixture
def world(folder: Path, options: Any) -> World:
    return World(folder, options)


def test_a_right_signature(world: World, keys: KeyManager) -> None:
    world.options(group="glance", verify_glance_signatures=True)
    with world.serving(keys.issue("signer").sign(ARCHIVE)):
        assert world.boot() == LOADED
        assert set(world.engine.tags) == {f"{world.image.name}-signed"}


def test_a_wrong_signature(world: World, keys: KeyManager) -> None:
    world.options(group="glance", verify_glance_signatures=True)
    with (
        world.serving(keys.issue("signer").sign(ARCHIVE + b"x")),
        pytest.raises(exception.InvalidImage, match="does not match its signature"),
    ):
        world.boot()
    # A large layer was with the engine before the signature was known to be wrong.
    assert len(world.engine.unpacked) + len(world.engine.sent) > 0
    world.check_nothing_left()


def test_another_signers_certificate(world: World, keys: KeyManager) -> None:
    world.options(group="glance", verify_glance_signatures=True)
    found = keys.issue("signer").sign(ARCHIVE)
    found["img_signature_certificate_uuid"] = keys.issue("other").id
    with world.serving(found), pytest.raises(exception.InvalidImage, match="match its signature"):
        world.boot()
    world.check_nothing_left()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"img_signature": None}, "Missing property: img_signature"),
        ({"img_signature_certificate_uuid": ABSENT}, f"Certificate not found with ID: {ABSENT}"),
        ({"img_signature_key_type": "RSA-PSS"}, "Invalid public key type"),
    ],
)
def test_an_incomplete_signature(
    world: World, keys: KeyManager, changes: dict[str, str | None], text: str
) -> None:
    world.options(group="glance", verify_glance_signatures=True)
    found = {**keys.issue("signer").sign(ARCHIVE), **changes}
    with (
        world.serving({name: value for name, value in found.items() if value}),
        pytest.raises(exception.InvalidImage, match=text),
    ):
        world.boot()
    world.check_nothing_left()
    assert world.engine.sent == b""


def test_a_certificate_that_the_owner_trusts(world: World, keys: KeyManager) -> None:
    authority = keys.issue("authority")
    with world.serving(keys.issue("signer", authority).sign(ARCHIVE)):
        assert world.boot(authority.id) == LOADED


@pytest.mark.parametrize("kind", ["foreign", "expired", "no authority"])
def test_a_certificate_that_the_owner_does_not_trust(
    world: World, keys: KeyManager, kind: str
) -> None:
    authority, other = keys.issue("authority"), keys.issue("other")
    signer = keys.issue("signer", authority, days=-1 if kind == "expired" else 1)
    issuer = {"no authority": keys.issue("leaf", authority), "foreign": other}
    with (
        world.serving(signer.sign(ARCHIVE)),
        pytest.raises(nova_exception.CertificateValidationFailed),
    ):
        world.boot(issuer.get(kind, authority).id)
    world.check_nothing_left()


def test_the_clouds_default_certificates(world: World, keys: KeyManager) -> None:
    authority, other = keys.issue("authority"), keys.issue("other")
    world.options(group="glance", enable_certificate_validation=True)
    with world.serving(keys.issue("signer", authority).sign(ARCHIVE)):
        world.options(group="glance", default_trusted_certificate_ids=[other.id])
        with pytest.raises(nova_exception.CertificateValidationFailed):
            world.boot()
        world.check_nothing_left()
        world.options(group="glance", default_trusted_certificate_ids=[authority.id])
        assert world.store.cache(world.context, str(world.image.record["id"]))
        assert not world.store.cache(world.context, str(world.image.record["id"]))


def test_an_image_of_the_cache_that_nobody_verified(world: World, keys: KeyManager) -> None:
    with world.serving(keys.issue("signer").sign(b"other")):
        assert world.boot() == LOADED
        assert set(world.engine.tags) == {world.image.name}
        world.options(group="glance", verify_glance_signatures=True)
        with pytest.raises(exception.InvalidImage, match="does not match its signature"):
            world.boot()


def test_an_image_that_was_verified_for_another_owner(world: World, keys: KeyManager) -> None:
    authority, other = keys.issue("authority"), keys.issue("other")
    with world.serving(keys.issue("signer", authority).sign(ARCHIVE)):
        assert world.boot(authority.id) == LOADED
        with pytest.raises(nova_exception.CertificateValidationFailed):
            world.boot(other.id)


@pytest.mark.parametrize("by", ["option", "owner"])
def test_no_way_around_by_a_registry(world: World, keys: KeyManager, options: Any, by: str) -> None:
    options(group="docker", allowed_registries=["r.example"])
    options(group="glance", verify_glance_signatures=by == "option")
    with world.serving({"docker_image": "r.example/web:1"}):
        world.image.record.update(checksum=None, os_hash_algo=None, os_hash_value=None, size=0)
        with pytest.raises(exception.InvalidImage, match="signature must be verified"):
            world.boot(*([keys.issue("authority").id] if by == "owner" else []))


@pytest.mark.parametrize("by", ["option", "owner"])
def test_the_operators_command_replaces_a_signature_but_no_certificate(
    world: World, keys: KeyManager, options: Any, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    options(group="docker", allowed_registries=["r.example"], registry_verify_command=["true"])
    options(group="glance", verify_glance_signatures=by == "option")

    def pull(engine: Engine, *_: object) -> str:
        engine.tags["pulled"] = LOADED
        return "pulled"

    monkeypatch.setattr("novadocker.virt.docker.images.registry.pull", pull)
    world.engine.platform = "linux/amd64"
    with world.serving({"docker_image": "r.example/web:1"}):
        world.image.record.update(checksum=None, os_hash_algo=None, os_hash_value=None, size=0)
        if by == "owner":
            with pytest.raises(exception.InvalidImage, match="signature must be verified"):
                world.boot(keys.issue("authority").id)
        else:
            assert world.boot() == LOADED
            (name,) = world.engine.tags
            # An image that was pulled without the command has another name.
            assert name.endswith("-verified")


def test_marks_differ() -> None:
    def mark(signed: bool, validation: bool, defaults: list[str], *own: str) -> str:
        options = SimpleNamespace(
            verify_glance_signatures=signed,
            enable_certificate_validation=validation,
            default_trusted_certificate_ids=defaults,
        )
        return signatures.demand(options, own).mark

    assert mark(False, False, ["a"]) == ""
    assert mark(True, False, ["a"]) == mark(True, True, []) == "-signed"
    assert mark(False, True, ["a", "b"]) == mark(True, False, [], "b", "a")
    assert len({mark(False, False, [], *own) for own in [(), ("a",), ("b",), ("a", "b")]}) == 4
