# SPDX-License-Identifier: Apache-2.0
"""Errors of registries, in the words of the supported versions of the engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.virt.docker.engine import registry_errors
from tests import fuzz

DIGEST = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Get https://r.example/v2/web/manifests/1: no basic auth credentials", "requires a login"),
        ("unauthorized: authentication required", "refuses the credentials"),
        ("manifest for r.example/web:1 not found: manifest unknown: manifest unknown", "no such"),
        ("manifest unknown: manifest unknown", "no such image"),
        ("failed to resolve reference: r.example/web:1: not found", "answered with an error"),
        (
            "pull access denied for r.example/web, repository does not exist or may require 'docker"
            " login': denied: requested access to the resource is denied",
            "no such image, or does not let",
        ),
        ("denied: requested access to the resource is denied", "denies access"),
        ("no matching manifest for linux/amd64 in the manifest list entries", "the platform"),
        (
            "no matching manifest for linux/arm64/v8 in the manifest list entries: no match for "
            "platform in manifest: not found",
            "the platform of this host",
        ),
        ("toomanyrequests: You have reached your pull rate limit.", "limits the number"),
        (
            "Get https://r.example/v2/: tls: failed to verify certificate: x509: certificate signed"
            " by unknown authority",
            "certificate is not trusted",
        ),
        ("Get https://r.example/v2/: x509: certificate signed by unknown authority", "certificate"),
        (f"manifest verification failed for digest {DIGEST}", "expected digest"),
        (f"filesystem layer verification failed for digest {DIGEST}", "expected digest"),
        ('unsupported media type "text/html"', "does not support"),
        ("mediaType in manifest should be 'application/vnd.oci' not 'x'", "does not support"),
        ("write /var/lib/docker/tmp/x: no space left on device", "no space left"),
        ("dial tcp 192.0.2.7:443: connect: connection refused", "failed to connect"),
        ("dial tcp: lookup r.example on 192.0.2.1:53: no such host", "failed to connect"),
        ("net/http: TLS handshake timeout", "failed to connect"),
        ("http: server gave HTTP response to HTTPS client", "failed to connect"),
        ("context deadline exceeded", "failed to connect"),
        ("error parsing HTTP 404 response body: invalid character", "answered with an error"),
        ("unknown: anything", "answered with an error"),
        ("", "answered with an error"),
    ],
)
def test_known_forms(message: str, expected: str) -> None:
    assert expected in registry_errors.describe(message)


@given(st.text(max_size=200))
@fuzz.examples(200)
def test_no_message_is_passed_on(message: str) -> None:
    with fuzz.bounds():
        found = {registry_errors.describe(message), registry_errors.describe("denied: " + message)}
    assert found <= set(registry_errors.SENTENCES)


def test_a_long_message_is_fast() -> None:
    assert registry_errors.describe("repository manifest for " * 1_000_000) is not None


def test_sentences_fit_into_a_fault() -> None:
    assert max(map(len, registry_errors.SENTENCES)) < 100
