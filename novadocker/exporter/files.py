# SPDX-License-Identifier: Apache-2.0
"""Reading the kernel's small files."""

import os

_LARGEST = 256 << 10


def read(path: str) -> str | None:
    """Return what a file has, None if it is gone or this kernel has none.

    :raises PermissionError: the exporter lacks a right; that is the operator's to mend
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return None
    try:
        # such a file is made as it is read: a short answer is not its end, an empty one is
        content = part = os.read(descriptor, _LARGEST)
        while part and len(content) < _LARGEST:
            part = os.read(descriptor, _LARGEST - len(content))
            content += part
    except OSError:
        # ENODEV, ESRCH: its group or process went away in between; EOPNOTSUPP: not counted here
        return None
    finally:
        os.close(descriptor)
    return content.decode("utf-8", "replace")
