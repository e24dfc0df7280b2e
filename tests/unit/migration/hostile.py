# SPDX-License-Identifier: Apache-2.0
"""What a hostile host sends in place of a message of the protocol of a move."""

from hypothesis import strategies as st

NO_MESSAGES = {
    "a number": b"1\n",
    "a list": b"[]\n",
    "a list with the right word": b'["ready", "loaded", "load", "version"]\n',
    "nothing": b"null\n",
    "an empty object": b"{}\n",
    "an empty line": b"\n",
    "no text": b"\xff\xfe\n",
    "depth": b"[" * 60_000 + b"\n",
    "more depth than a line has": b"[" * 200_000 + b"\n",
    "depth in an object": b'{"a":' * 10_000 + b"\n",
    "a long number": b"9" * 60_000 + b"\n",
    "a line without an end": b"x" * 200_000,
    "an unknown word": b'{"delete": true}\n',
    "cut off": b'{"ready": true, "ima',
}

WORDS = (
    *("version", "uuid", "token", "image", "load", "bytes", "pull", "fetch", "apply", "commit"),
    *("ready", "loaded", "applied", "kept", "refused", "x"),
)

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.just("0" * 32),
        st.just(f"sha256:{'1' * 64}"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    ),
    max_leaves=8,
)
