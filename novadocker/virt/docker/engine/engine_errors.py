# SPDX-License-Identifier: Apache-2.0
"""Pure: errors that the engine reports about its own work, as sentences that a tenant may read.

The engine's messages contain paths of the host, the words of other programs, and text that an image
or a registry chooses. So no message is passed on as it is: the known forms select a sentence, which
quotes at most the name of a file, a program or an account in the image. A sentence that says less
than the message ends with ``OTHER``. ``registry_errors`` describes errors of requests to
registries.
"""

import errno
import os
import re

from novadocker import naming

OTHER = "nova-compute's log contains the engine's message"
"""The sentence about a message of no known form, and the end of sentences that omit the object."""

# Prefixes that dockerd, containerd's shim and runc add to the cause of a failed start.
_WRAPPING = re.compile(
    r"^((failed to create (shim )?task( for container)?|OCI runtime \w+ failed|\w+ \w+ failed"
    r"|unable to start container process|error during container init): )+"
)

# Go's texts are those of the C library in lower case.
_CAUSES = "|".join(re.escape(os.strerror(code).lower()) for code in sorted(errno.errorcode))
# A name that the image chooses: printable ASCII without quotation marks.
_NAME = r"[!#-~ ]{1,120}"
_ID = naming.CONTAINER_ID.pattern

# The first form that is found selects the sentence, in which \1 and so on are groups of the form.
# The words are those of Engine 20.10 to 28, runc 1.0 to 1.3 and the runtime shim.
_FORMS = tuple(
    (re.compile(form), sentence)
    for form, sentence in (
        # Its reason can quote the image. Its log contains the reason.
        (
            "^novadocker-engine-proxy refuses the request",
            "novadocker-engine-proxy refuses the request",
        ),
        # The runtime shim; ``containers.lifecycle`` recognizes a closed terminal by its sentence.
        (r"^novadocker: ([ -~]{1,200})", r"novadocker: \1"),
        # ``containers.lifecycle`` recognizes this sentence. An image chooses the text of an exec.
        (rf"^task ({_ID}): already exists", r"task \1: already exists"),
        # The container's shim is of a newer containerd.
        (
            r"^service containerd\.task\.v[0-9]{1,3}\.Task: not implemented$",
            "containerd was downgraded while the container ran, so it starts after the next reboot "
            "of the host",
        ),
        # The first process.
        (
            rf'exec: "({_NAME})": executable file not found in \$PATH',
            r'exec: "\1": executable file not found in $PATH',
        ),
        # An engine that takes the error for the denial of a permission repeats that.
        (
            rf'exec: "({_NAME})": (?:stat {_NAME}: )?({_CAUSES})(?:: unknown: permission denied)?$',
            r'exec: "\1": \2',
        ),
        (rf"\bexec (/{_NAME}): ({_CAUSES})$", r'exec: "\1": \2'),
        (
            rf'chdir to cwd \("({_NAME})"\) set in config\.json failed: ({_CAUSES})$',
            r'the working directory "\1" of the image cannot be used: \2',
        ),
        (rf"Cannot mkdir: ({_NAME}) is not a directory", r'"\1" is not a directory'),
        (
            rf"unable to find (user|group) ({_NAME}): no matching entries",
            r'the image has no \1 "\2"',
        ),
        (
            r"unable to (?:find|set ?up) (?:user|group)",
            "the image's /etc/passwd or /etc/group cannot be read",
        ),
        (r"[Uu]ids and gids must be in range", "the id of the image's user is out of range"),
        (r"invalid environment variable", "the image has an invalid environment variable"),
        (r"[Nn]o command specified", "the image has no command"),
        (
            r"OOM-killed|container init exited prematurely|read init-p: connection reset",
            "the first process was killed at its start; the memory of the flavor may be too little",
        ),
        # Limits.
        (
            r"[Mm]inimum memory limit (?:allowed is|can not be less than) (\d{1,9} ?[KMG]i?B)",
            r"the minimum memory is \1",
        ),
        (
            r"[Rr]ange of CPUs is from ([\d.]{1,9}) to ([\d.]{1,9})",
            r"the number of CPUs is not between \1 and \2",
        ),
        (
            r"Requested (CPUs|memory nodes) are not available",
            r"the requested \1 are not available on the host",
        ),
        (
            r"storage-opt|[Uu]nknown option (?:size|for overlay)",
            "the engine's storage cannot limit the size of a disk (storage-opt)",
        ),
        (r"memoryswap limit", "the limits of memory and swap contradict each other"),
        (r"wrong rlimit value", "the engine does not know the resource limit"),
        (
            r'sysctl "([\w./-]{1,80})" is not',
            r"the sysctl \1 does not belong to a server's own namespaces",
        ),
        # Older kernels hide two sysctls of networks, and refuse those of IPC, in a user namespace
        # (Linux commits 6b754d7bd007, cec16052d5a7, 50ec499b9a43 and f9436a5d0497).
        (
            r"/proc/sys/net/core/somaxconn: no such file or directory$",
            "a server with a user namespace can't have the sysctl net.core.somaxconn before Linux "
            "6.3 on the host",
        ),
        (
            r"/proc/sys/net/unix/max_dgram_qlen: no such file or directory$",
            "a server with a user namespace can't have the sysctl net.unix.max_dgram_qlen before "
            "Linux 5.17 on the host",
        ),
        (
            r"/proc/sys/(kernel|fs/mqueue)/([a-z_]{1,40}): permission denied$",
            r"a server with a user namespace can't have the sysctl \1/\2 before Linux 6.9 on the "
            "host",
        ),
        (
            rf"/proc/sys/([\w./-]{{1,80}}): ({_CAUSES})$",
            r"the kernel refuses the sysctl \1: \2",
        ),
        (
            r"unable to set memory limit to (\d{1,19}) \(current usage: (\d{1,19})",
            r"the processes use \2 bytes of memory, more than the limit of \1 bytes",
        ),
        (
            rf"/((?!io\.containerd)(?:cpu|cpuset|memory|pids|blkio|io|devices)\.[a-z_.]{{1,40}})\b[^/]{{0,9}}"
            rf"(?:.{{0,400}}): ({_CAUSES})$",
            r"the kernel refuses the limit \1: \2",
        ),
        # The state of a container.
        (
            r'[Cc]ontainer name "/?([\w.-]{1,120})" is already in use',
            r"the container name \1 is already in use",
        ),
        (
            r"is not running|cannot (?:exec|kill|pause) (?:a|in a) (?:stopped|non-running)"
            r"|process already finished|container not running|no such process",
            "the container is not running",
        ),
        (r"is already paused", "the container is already paused"),
        (r"is not paused", "the container is not paused"),
        (r"is paused\b|paused container", "the container is paused"),
        (r"is restarting", "the container is restarting"),
        (
            r"marked for removal|removal of container .{1,130} is already in progress",
            "the container is being removed",
        ),
        (
            r"[Nn]o such (container|image|volume|exec)\b",
            r"the \1 does not exist in the engine",
        ),
        (r"[Cc]ould not find the file", "the file does not exist in the container"),
        (
            r"image is being used by|conflict: unable to (?:remove|delete)",
            "the image is in use",
        ),
        # What the engine lacks.
        (
            r"[Uu]nknown (?:or invalid )?runtime",
            "the engine has no runtime of the name in [docker] runtime",
        ),
        (
            r"bind source path does not exist",
            "a file of the host that the server needs does not exist",
        ),
        (r"seccomp", "the engine or the kernel refuses the seccomp profile"),
        (r"apparmor", "the engine or the kernel refuses the AppArmor profile"),
        (
            r"[Uu]nknown capability.{0,5}?\b((?:CAP_)?[A-Z_]{2,30})\b",
            r"the engine does not know the capability \1",
        ),
        # Images.
        (r"unexpected EOF", "an archive ends in the middle of a file (unexpected EOF)"),
        (r"max depth exceeded", "the image has too many layers"),
        (
            r"archive/tar: |invalid tar header|invalid entry name|unhandled tar header"
            r"|duplicates of file paths|breakout|path escapes from parent|invalid hardlink",
            "a layer of the image is not a valid archive",
        ),
        (
            r"invalid diffID|layers from manifest don't match|digest (?:mismatch|verification)",
            "a layer of the image does not have the expected digest",
        ),
        # The engine itself.
        (
            r"deadline exceeded|context canceled|timed? ?out\b",
            "an operation inside the engine took too long",
        ),
        (
            r"containerd.{0,80}connect|transport is closing|ttrpc: closed|error while dialing",
            "the engine has no connection to containerd",
        ),
        # The last words alone do not name the file.
        (rf"\b({_CAUSES})\.?$", rf"\1; {OTHER}"),
    )
)

# Patterns are not searched in more of a message, because an image can choose its length.
_LONGEST = 2048


def concise(message: str) -> str:
    """Return a message without the prefixes of the engine's layers."""
    return _WRAPPING.sub("", message).removesuffix(": unknown")


def describe(message: str) -> str:
    """Return the sentence about an error of the engine; ``OTHER`` if its form is not known."""
    text = concise(message).strip()
    # The cause is at the end.
    text = text if len(text) <= _LONGEST else text[: _LONGEST // 2] + text[-_LONGEST // 2 :]
    for form, sentence in _FORMS:
        found = form.search(text)
        if found:
            return found.expand(sentence)
    return OTHER
