# SPDX-License-Identifier: Apache-2.0
"""Accounts of a container: the lines of passwd(5) and shadow(5); pure.

The driver applies these rules to running containers, and the runtime shim to containers before
their first process. Because each start of a container waits for the shim, this module imports
nothing.
"""

_NEW_SHADOW_FIELDS = b":0:99999:7:::"
# chown(2) takes the highest number of 32 bits as "no change".
_IDS = range((1 << 32) - 1)


def find_entry(content: bytes, user: str) -> list[bytes] | None:
    """Return the fields after the name in a user's first line; None if the user has no line."""
    start, end = _find_line(content, user.encode())
    return content[start:end].split(b":")[1:] if start < end else None


def read_identity(fields: list[bytes]) -> tuple[int, int, bytes]:
    """Return user id, group id and home directory of an entry of passwd(5).

    Ids are decimal, also with leading zeros.

    :param fields: the fields after the name
    :raises ValueError: an id is missing or malformed
    """
    ids = fields[1:3]
    if len(ids) != 2 or not all(text.isdigit() and len(text) <= 20 for text in ids):
        raise ValueError("an id is malformed")
    uid, gid = map(int, ids)
    if uid not in _IDS or gid not in _IDS:
        raise ValueError("an id is too large")
    return uid, gid, fields[4] if len(fields) > 4 else b""


def set_password(shadow: bytes, user: str, password_hash: str, day: int) -> bytes:
    """Return the content of /etc/shadow with a user's password replaced, or the user added."""
    name = user.encode()
    changed = b"%s:%s:%d" % (name, password_hash.encode(), day)
    start, end = _find_line(shadow, name)
    if start < end:
        line = b":".join([changed, *shadow[start:end].split(b":")[3:]])
    else:
        line = changed + _NEW_SHADOW_FIELDS
        if shadow and not shadow.endswith(b"\n"):
            shadow += b"\n"
        start = end = len(shadow)
    after = shadow[end:]
    return shadow[:start] + line + (after if after.endswith(b"\n") else after + b"\n")


def shadowed(passwd: bytes, user: str) -> bool:
    """Return True if a user exists whose password is in /etc/shadow."""
    return (find_entry(passwd, user) or [])[:1] == [b"x"]


def _find_line(content: bytes, name: bytes) -> tuple[int, int]:
    """Return begin and end of the first line of a name, without the line end; (0, 0) without one.

    Lines end at a line feed alone, as in the C library.
    """
    marked = b"\n" + content
    start = marked.find(b"\n" + name)
    while start >= 0:
        after = start + 1 + len(name)
        if marked[after : after + 1] in (b"", b":", b"\n"):
            end = content.find(b"\n", start)
            return start, len(content) if end < 0 else end
        start = marked.find(b"\n" + name, after)
    return 0, 0
