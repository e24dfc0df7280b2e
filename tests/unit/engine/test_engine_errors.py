# SPDX-License-Identifier: Apache-2.0
"""Errors of the engine's own work, in the words of the supported versions of the engine."""

import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from novadocker import extra_specs
from novadocker.virt.docker.engine import engine_errors
from novadocker.virt.docker.engine.engine_errors import OTHER
from tests import fuzz

ID = "5" * 64
RUNC = "OCI runtime create failed: runc create failed: unable to start container process: "
INIT = "error during container init: "
SHIM = "failed to create shim task: "
NEW = "failed to create task for container: failed to create shim task: "
SECRET = "the-secret"
ROOT = f"/var/lib/docker/overlay2/{SECRET}/merged"


# The kernels from which on a server with a user namespace may have a sysctl; others: any kernel.
_HIDDEN = {"net.core.somaxconn": "6.3", "net.unix.max_dgram_qlen": "5.17"}


@pytest.mark.parametrize("name", [spec.sysctl for spec in extra_specs.SYSCTLS])
@pytest.mark.parametrize("before", [SHIM, NEW])
def test_a_sysctl_in_a_user_namespace_on_an_older_kernel(name: str, before: str) -> None:
    path = name.replace(".", "/")
    is_ipc = name.startswith(("kernel.", "fs.mqueue."))
    cause = "permission denied" if is_ipc else "no such file or directory"
    found = engine_errors.describe(f"{before}{RUNC}{INIT}open /proc/sys/{path}: {cause}: unknown")
    release = "6.9" if is_ipc else _HIDDEN.get(name)
    if release is None:
        assert found == f"the kernel refuses the sysctl {path}: {cause}"
    else:
        assert found.startswith("a server with a user namespace can't have the sysctl ")
        assert found.replace("/", ".").endswith(f"{name} before Linux {release} on the host")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            f'{SHIM}{RUNC}exec: "/x": stat /x: no such file or directory: unknown',
            'exec: "/x": no such file or directory',
        ),
        (
            f'{NEW}{RUNC}exec: "/x": stat /x: no such file or directory',
            'exec: "/x": no such file or directory',
        ),
        (
            f'{SHIM}{RUNC}exec: "web": executable file not found in $PATH: unknown',
            'exec: "web": executable file not found in $PATH',
        ),
        (f'{NEW}{RUNC}{INIT}exec: "/tmp": is a directory: unknown', 'exec: "/tmp": is a directory'),
        (
            f'{NEW}{RUNC}{INIT}exec: "/tmp": is a directory: unknown: permission denied',
            'exec: "/tmp": is a directory',
        ),
        (f'{SHIM}{RUNC}exec: "/x": permission denied: unknown', 'exec: "/x": permission denied'),
        (f"{NEW}{RUNC}{INIT}exec /x: exec format error", 'exec: "/x": exec format error'),
        (
            f'{RUNC}chdir to cwd ("/w") set in config.json failed: not a directory: unknown',
            'the working directory "/w" of the image cannot be used: not a directory',
        ),
        ("Cannot mkdir: /w is not a directory", '"/w" is not a directory'),
        (
            "unable to find user web: no matching entries in passwd file",
            'the image has no user "web"',
        ),
        (
            "linux spec user: unable to find group web: no matching entries in group file",
            'the image has no group "web"',
        ),
        (
            f"unable to find user 0: read {ROOT}/etc/passwd: is a directory",
            "the image's /etc/passwd or /etc/group cannot be read",
        ),
        (
            f"{SHIM}OCI runtime create failed: novadocker: no record: unknown",
            "novadocker: no record",
        ),
        (f"{NEW}OCI runtime create failed: novadocker: no record", "novadocker: no record"),
        (
            f"{SHIM}OCI runtime create failed: novadocker: the engine has closed the terminal of "
            f"container {ID}: unknown",
            f"novadocker: the engine has closed the terminal of container {ID}",
        ),
        (
            "novadocker-engine-proxy refuses the request: Image: seccomp is not allowed",
            "novadocker-engine-proxy refuses the request",
        ),
        (f"task {ID}: already exists: unknown", f"task {ID}: already exists"),
        (
            f"failed to create task for container: task {ID}: already exists",
            f"task {ID}: already exists",
        ),
        (
            "failed to create shim task: service containerd.task.v2.Task: not implemented",
            "containerd was downgraded while the container ran, so it starts after the next reboot "
            "of the host",
        ),
        (
            f"mkdir {ROOT}/io.containerd.runtime.v2.task/moby/{ID}: file exists",
            f"file exists; {OTHER}",
        ),
        # An image's entry point.
        (
            f'{RUNC}exec: "task {ID}: already exists": executable file not found in $PATH: unknown',
            f'exec: "task {ID}: already exists": executable file not found in $PATH',
        ),
        (
            "container init was OOM-killed (memory limit too low?): unknown",
            "the first process was killed at its start; the memory of the flavor may be too little",
        ),
        ("Minimum memory limit allowed is 6MB", "the minimum memory is 6MB"),
        (
            "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
            "the number of CPUs is not between 0.01 and 2.00",
        ),
        (
            "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available",
            "the number of CPUs is not between 0.01 and 2.00",
        ),
        (
            "Requested CPUs are not available - requested 900, available: 0-1",
            "the requested CPUs are not available on the host",
        ),
        (
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
            "the engine's storage cannot limit the size of a disk (storage-opt)",
        ),
        (
            f"Cannot update container {ID}: runc did not terminate successfully: exit status 1: "
            "unable to set memory limit to 16777216 (current usage: 26906624, peak usage: 27)",
            "the processes use 26906624 bytes of memory, more than the limit of 16777216 bytes",
        ),
        (
            f'failed to write "16777216" to "/sys/fs/cgroup/memory/docker/{ID}/'
            'memory.limit_in_bytes": write /sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes: '
            "device or resource busy: unknown",
            "the kernel refuses the limit memory.limit_in_bytes: device or resource busy",
        ),
        (
            'Conflict. The container name "/nova-5" is already in use by container "7".',
            "the container name nova-5 is already in use",
        ),
        (
            f"Cannot kill container: {ID}: Container {ID} is not running",
            "the container is not running",
        ),
        (f"Container {ID} is not paused", "the container is not paused"),
        (f"Container {ID} is already paused", "the container is already paused"),
        ("cannot start a paused container, try unpause instead", "the container is paused"),
        (f"No such container: {SECRET}", "the container does not exist in the engine"),
        (f"No such image: {SECRET}:1", "the image does not exist in the engine"),
        (
            f"Could not find the file /x in container {SECRET}",
            "the file does not exist in the container",
        ),
        (
            f'invalid mount config for type "bind": bind source path does not exist: {ROOT}',
            "a file of the host that the server needs does not exist",
        ),
        (
            'invalid CapAdd: unknown capability: "CAP_NOPE"',
            "the engine does not know the capability CAP_NOPE",
        ),
        (
            "unknown or invalid runtime name: novadocker",
            "the engine has no runtime of the name in [docker] runtime",
        ),
        (
            "Error processing tar file(exit status 1): unexpected EOF",
            "an archive ends in the middle of a file (unexpected EOF)",
        ),
        (
            f"Error processing tar file(exit status 1): link {ROOT} /s: no such file or directory",
            f"no such file or directory; {OTHER}",
        ),
        (
            "Error processing tar file(exit status 1): archive/tar: invalid tar header",
            "a layer of the image is not a valid archive",
        ),
        (
            f'Error processing tar file(exit status 1): invalid entry name "../../{SECRET}"',
            "a layer of the image is not a valid archive",
        ),
        (
            f"Error processing tar file(exit status 1): statat way/{SECRET}: path escapes from "
            "parent",
            "a layer of the image is not a valid archive",
        ),
        (
            f'Error processing tar file(exit status 1): invalid hardlink target "../{SECRET}"',
            "a layer of the image is not a valid archive",
        ),
        ("max depth exceeded", "the image has too many layers"),
        (
            f"write {ROOT}/f: no space left on device",
            f"no space left on device; {OTHER}",
        ),
        (f"open {ROOT}/f: Permission denied", OTHER),
        (
            f'error mounting "{ROOT}" to rootfs at "/x": not a directory',
            f"not a directory; {OTHER}",
        ),
        (f"permission denied: {SECRET}", OTHER),
        (f"{SECRET}", OTHER),
        ("", OTHER),
    ],
)
def test_known_forms(message: str, expected: str) -> None:
    assert engine_errors.describe(message) == expected
    assert SECRET not in expected


@given(st.text(max_size=100), st.text(max_size=100))
@fuzz.examples(200)
def test_what_stands_around_a_known_form_is_not_passed_on(before: str, after: str) -> None:
    for message in (
        f"{before} /{SECRET}: no space left on device",
        f"{before}{SECRET} is not running: {after}",
        f"{before}: {SECRET}{after}",
    ):
        # The text of the runtime shim, which contains only the driver's own words.
        assume("novadocker: " not in message)
        with fuzz.bounds():
            found = engine_errors.describe(message)
        assert SECRET not in found


def test_a_name_of_an_image_is_short_and_printable() -> None:
    long = f'exec: "/{"x" * 5000}": permission denied'
    assert len(engine_errors.describe(long)) < 200
    escape = 'exec: "/\x1b[2J": permission denied'
    assert engine_errors.describe(escape) == f"permission denied; {OTHER}"


@pytest.mark.parametrize(
    "text", ['exec: "', "/memory.", "runc create failed: ", "a ", "/proc/sys/", "container "]
)
def test_a_long_message_is_fast(text: str) -> None:
    begin = time.process_time()
    engine_errors.describe(text * (4_000_000 // len(text)))
    assert time.process_time() - begin < 2
