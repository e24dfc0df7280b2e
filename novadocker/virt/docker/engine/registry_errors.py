# SPDX-License-Identifier: Apache-2.0
"""Pure: errors that the engine reports about a registry, as sentences that a tenant may read.

A registry can redirect the engine to any service that the host can reach. The engine's message then
contains the response of that service, in words that differ between versions of the engine, or
whether a port of another host is open. So no part of the message is passed on: the known forms
select a sentence, and any other message gets the last one.
"""

import re

# The first form that occurs in the message selects the sentence. The words are those of Engine
# 20.10 to 28 (its packages distribution and registry, and their libraries).
_FORMS = tuple(
    (re.compile(form, re.IGNORECASE), sentence)
    for form, sentence in (
        (
            r"no basic auth credentials",
            "the registry requires a login, and nova-compute has no basic auth credentials for it",
        ),
        (r"unauthorized|authentication required", "the registry refuses the credentials"),
        (
            r"no matching manifest for|does not provide the specified platform"
            r"|cannot be used on this platform",
            "the registry has no such image for the platform of this host",
        ),
        (
            r"manifest unknown|name unknown|repository .{0,300} not found"
            r"|manifest for .{0,300} not found|does not exist",
            "the registry has no such image, or does not let nova-compute read it",
        ),
        (r"denied", "the registry denies access to the image"),
        (r"toomanyrequests|too many requests", "the registry limits the number of requests"),
        (r"x509|certificate", "the registry's certificate is not trusted by the engine"),
        (
            r"verification failed|unexpected commit digest|digest (?:mismatch|verification)"
            r"|content digest|did not match",
            "the registry sent content that does not have the expected digest",
        ),
        (
            r"media ?type|unsupported manifest|schema version|schema 1|image format v1"
            r"|manifest list entries",
            "the registry sent a manifest that the engine does not support",
        ),
        (r"no space left on device", "the host has no space left for the image"),
        (
            r"dial tcp|no such host|connection re(?:fused|set)|unreachable|timeout|timed out"
            r"|deadline exceeded|HTTP response to HTTPS client|tls:|\bEOF\b",
            "the engine failed to connect to the registry",
        ),
    )
)
_OTHER = "the registry answered with an error; nova-compute's log contains the engine's message"

SENTENCES = frozenset((*(sentence for _, sentence in _FORMS), _OTHER))
"""All sentences."""

# Patterns are not searched in more of a message, because the registry chooses its length.
_LONGEST = 4096


def describe(message: str) -> str:
    """Return the sentence about an error that the engine reports for a request to a registry."""
    start = message[:_LONGEST]
    return next((sentence for form, sentence in _FORMS if form.search(start)), _OTHER)
