# SPDX-License-Identifier: Apache-2.0
"""The Docker Engine over its REST API: the only module that imports the docker SDK.

One method is one request. Answers become the dataclasses of ``model``, failures the errors of
``novadocker.exception``; nothing here knows Nova's objects.
"""

import contextlib
import datetime
import io
import itertools
import json
import os
import re
import socket
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import docker
import requests
import urllib3
from docker import auth, errors
from docker.transport import UnixHTTPAdapter
from oslo_utils import timeutils

from novadocker import exception, naming
from novadocker.virt.docker.claim import EngineClaim
from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerEvent,
    ContainerSpec,
    EngineImage,
    EngineInfo,
    Isolation,
    Limits,
    Overlay,
    Storage,
    Terminal,
    Usage,
)

# 1.41 is Engine 20.10's, the oldest that is supported.
MINIMUM_API_VERSION = (1, 41)

# what dockerd, containerd's shim and runc put before the cause of a failed start
_WRAPPING = re.compile(
    r"^((failed to create (shim )?task|OCI runtime \w+ failed|\w+ \w+ failed"
    r"|unable to start container process): )+"
)

_ANSWER = re.compile(r"(error parsing HTTP \d+ response body).*", re.DOTALL)

# files of the network in /etc; a larger one is none that the driver wrote
_LARGEST_READ = 64 << 10

# what systemd would mount itself if it might
_SYSTEMD_TMPFS = {
    "/run": "rw,nosuid,nodev,exec,mode=755",
    "/run/lock": "rw,nosuid,nodev,noexec,mode=1777,size=5m",
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

# the engine splits lines after 16 KiB
_LOG_TAIL_LINES = 2000
_CHUNK_BYTES = 65536

# The SDK's default (ctrl-p ctrl-q) takes a key from every shell; nobody types this, and none at all
# is not to be had.
_DETACH_KEYS = "ctrl-@,ctrl-^,ctrl-@,ctrl-^,ctrl-@"


class _OnePool(UnixHTTPAdapter):
    """Connections of which each serves requests for any path.

    The SDK's own adapter keeps one for each of the last 25 paths it asked for, in every thread.
    """

    def get_connection(self, url: str, proxies: Any = None) -> Any:  # noqa: ARG002
        """Return the pool, whatever the path."""
        return super().get_connection("http+docker://localhost", proxies)


@dataclass(frozen=True)
class Tls:
    """Files for a connection to an engine at https://, each empty for none.

    :ivar ca: who may have signed the engine's certificate; the system's authorities unless given
    :ivar certificate: nova-compute's own, with ``key``
    """

    ca: str = ""
    certificate: str = ""
    key: str = ""


class Engine:
    """The engine at ``url``; safe to share between threads.

    Every request ends within ``timeout`` seconds without an answer. Every method raises
    ``EngineUnavailable`` when the engine does not answer and ``EngineError`` when it refuses.
    """

    def __init__(self, url: str, timeout: int, load_timeout: int, tls: Tls | None = None) -> None:
        self._url = url
        self._timeout = timeout
        self._load_timeout = load_timeout
        self._tls = tls or Tls()
        self._local = threading.local()
        self._claim = EngineClaim()

    # -- the engine ---------------------------------------------------------------------------

    def info(self) -> EngineInfo:
        """Return the facts of the engine and its host."""
        with self._translated("its facts"):
            info = self._client.info()
            return EngineInfo(
                version=info["ServerVersion"],
                api_version=self._client.api_version,
                cpus=info["NCPU"],
                memory_bytes=info["MemTotal"],
                architecture=info["Architecture"],
                data_root=info["DockerRootDir"],
                storage_driver=info["Driver"],
                cgroup_version=info.get("CgroupVersion", "1"),
                live_restore=info["LiveRestoreEnabled"],
                runtimes={
                    name: runtime.get("path", "") for name, runtime in info["Runtimes"].items()
                },
                backing_filesystem=dict(info["DriverStatus"] or ()).get("Backing Filesystem", ""),
                warnings=tuple(info.get("Warnings") or ()),
                user_namespaces="name=userns" in (info.get("SecurityOptions") or ()),
            )

    def claim(self, info: EngineInfo) -> None:
        """Keep every other nova-compute off the engine until ``release``; again is fine.

        :raises InvalidConfiguration: another one has it
        """
        self._claim.take(info.data_root)

    def release(self) -> None:
        """Let another nova-compute have the engine."""
        self._claim.release()

    # -- containers ---------------------------------------------------------------------------

    def list_containers(self, label: str) -> list[Container]:
        """Return all containers, in any state, that carry the label."""
        with self._translated("the list of containers"):
            rows = self._client.containers(all=True, filters={"label": label})
        return [
            Container(
                id=row["Id"],
                name=row["Names"][0].lstrip("/") if row.get("Names") else "",
                status=row["State"],
                labels=row.get("Labels") or {},
            )
            for row in rows
        ]

    def inspect_container(self, container: str) -> ContainerDetail:
        """Return what the engine knows of a container, by name or id.

        :raises ContainerNotFound: there is none
        """
        with self._translated("an inspection"):
            found = self._client.inspect_container(container)
        state, config = found["State"], found["Config"]
        return ContainerDetail(
            id=found["Id"],
            name=found["Name"].lstrip("/"),
            status=state["Status"],
            labels=config.get("Labels") or {},
            pid=state["Pid"],
            stop_signal=config.get("StopSignal") or "SIGTERM",
            started_at=timeutils.parse_isotime(state["StartedAt"]) if state["Pid"] else None,
            image_id=found["Image"],
        )

    def inspect_storage(self, container: str) -> Storage:
        """Return where a container's files are; ContainerNotFound if there is none."""
        with self._translated("an inspection"):
            found = self._client.inspect_container(container)
        driver = found.get("GraphDriver") or {}
        data = driver.get("Data") or {}
        return Storage(
            driver=driver.get("Name", "unknown"),
            upper=data.get("UpperDir", ""),
            lowers=tuple(data.get("LowerDir", "").split(":")),
            volumes={
                mount["Destination"]: mount["Source"]
                for mount in found.get("Mounts") or ()
                if mount["Type"] == "volume"
            },
            work=data.get("WorkDir", ""),
        )

    def create_container(self, spec: ContainerSpec) -> str:
        """Create a container that has no network of the engine's; return its id."""
        with self._translated("the creation"):
            created = self._client.create_container_from_config(_config(spec), name=spec.name)
        return str(created["Id"])

    def start_container(self, container: str) -> None:
        """Start a container; one that runs already is left alone."""
        with self._translated("the start"):
            self._client.start(container)

    def update_container(self, container: str, limits: Limits) -> None:
        """Change those limits that the engine keeps, of a running container at once.

        The size of its disk is not among them: no engine changes that. No CPUs or NUMA nodes mean
        no change: the engine has no word for any.
        """
        with self._translated("the new limits"):
            client = self._client
            # the SDK's own call has no limit of processes
            response = client.post(
                f"{client.base_url}/v{client.api_version}/containers/{container}/update",
                json=_changes(limits),
                timeout=self._timeout,
            )
            try:
                response.raise_for_status()
            except requests.HTTPError as error:
                raise errors.create_api_error_from_http_exception(error) from error

    def signal_container(self, container: str, signal: str) -> None:
        """Send a signal to the first process of a running container."""
        with self._translated(f"the signal {signal}"):
            self._client.kill(container, signal)

    def wait_container(self, container: str, timeout: float) -> int | None:
        """Wait until a container does not run; return its exit code, None after ``timeout`` s."""
        try:
            with self._translated("a wait"):
                return int(self._client.wait(container, timeout=timeout)["StatusCode"])
        except exception.EngineUnavailable as error:
            if _is_read_timeout(error.__cause__):
                return None
            raise

    def pause_container(self, container: str) -> None:
        """Freeze all processes of a container."""
        with self._translated("the pause"):
            self._client.pause(container)

    def unpause_container(self, container: str) -> None:
        """Let the processes of a frozen container go on."""
        with self._translated("the end of the pause"):
            self._client.unpause(container)

    def rename_container(self, container: str, name: str) -> None:
        """Give a container another name, which no other may have."""
        with self._translated("a new name"):
            self._client.rename(container, name)

    def remove_container(self, container: str) -> None:
        """Kill and remove a container and its anonymous volumes; absent is fine."""
        with (
            contextlib.suppress(exception.ContainerNotFound),
            self._translated("the removal"),
        ):
            self._client.remove_container(container, v=True, force=True)

    def remove_unused_overlays(self) -> None:
        """Remove the overlays of containers that are gone; those that can't be are left."""
        with self._translated("the list of overlays"):
            found = self._client.volumes({"label": naming.LABEL_OVERLAY, "dangling": True})
        for overlay in found["Volumes"] or ():
            with (
                contextlib.suppress(exception.EngineError),
                self._translated("the removal of an overlay"),
            ):
                self._client.remove_volume(overlay["Name"])

    def put_files(self, container: str, files: Mapping[str, bytes]) -> None:
        """Write files, by path below the container's root, owned by root and readable by all.

        The engine unpacks them confined to the container's file system, so no link in the image
        leads out of it. Works on a container that never ran.
        """
        with self._translated("the files"):
            self._client.put_archive(container, "/", _tar(files))

    def read_file(self, container: str, path: str) -> bytes | None:
        """Return the content of a plain file; None if there is none, or one above 64 KiB.

        A symbolic link is none. Works on a container that does not run.
        """
        try:
            with self._translated("the file"):
                chunks, _ = self._client.get_archive(container, path)
                return _only_file(chunks)
        except exception.ContainerNotFound:
            # the engine says the same of a missing path
            return None

    def read_console(self, container: str, most: int) -> bytes:
        """Return the end of what the container wrote, at most ``most`` bytes.

        The engine keeps it through restarts of the container and of itself, in files that it
        rotates. It is read in pieces, since a tenant decides how long a line is.
        """
        end = b""
        with (
            self._translated("the console log"),
            self._client.get(
                self._path(f"/containers/{container}/logs"),
                params={"stdout": 1, "stderr": 1, "tail": _LOG_TAIL_LINES},
                stream=True,
                timeout=self._timeout,
            ) as response,
        ):
            self._client._raise_for_status(response)
            for chunk in response.iter_content(_CHUNK_BYTES):
                end = (end + chunk)[-most:]
        return end

    def has_file(self, container: str, path: str) -> bool:
        """Tell whether there is something at a path in a container, links followed inside it."""
        try:
            with self._translated("a look at a file"):
                answer = self._client.head(
                    self._path(f"/containers/{container}/archive"),
                    params={"path": path},
                    timeout=self._timeout,
                )
                self._client._raise_for_status(answer)
        except exception.ContainerNotFound:
            return False
        return True

    def open_terminal(self, container: str, command: Iterable[str]) -> Terminal:
        """Run a command as root on a terminal of its own in a running container."""
        with self._translated("a terminal"):
            created = self._client.exec_create(
                container,
                list(command),
                stdin=True,
                tty=True,
                user="0",
                environment={"TERM": "xterm"},
                detach_keys=_DETACH_KEYS,
            )["Id"]
            return self._upgrade(
                f"/exec/{created}/start", {}, {"Tty": True, "Detach": False}, f"/exec/{created}"
            )

    def attach_terminal(self, container: str) -> Terminal:
        """Open the terminal of a running container's first process, from now on."""
        wanted = {"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1, "detachKeys": _DETACH_KEYS}
        path = f"/containers/{container}"
        with self._translated("its terminal"):
            return self._upgrade(f"{path}/attach", wanted, None, path)

    def resize_terminal(self, terminal: Terminal, rows: int, columns: int) -> None:
        """Tell a terminal its size."""
        with self._translated("the size of a terminal"):
            answer = self._client.post(
                self._path(f"{terminal.path}/resize"),
                params={"h": rows, "w": columns},
                timeout=self._timeout,
            )
            self._client._raise_for_status(answer)

    def terminal_process(self, terminal: Terminal) -> int:
        """Return the process that ``open_terminal`` started and that still runs, else 0."""
        if not terminal.path.startswith("/exec/"):
            return 0
        with self._translated("the state of a terminal"):
            found = self._client.exec_inspect(terminal.path.removeprefix("/exec/"))
        return int(found["Pid"]) if found["Running"] else 0

    def read_usage(self, container: str) -> Usage:
        """Return the counters of a running container."""
        with self._translated("the usage"):
            return _usage(self._client.stats(container, stream=False, one_shot=True))

    def watch_events(
        self, label: str, actions: Iterable[str], since_ns: int, quiet: float
    ) -> Iterator[ContainerEvent]:
        """Yield what happens to the containers that carry the label, from a moment on.

        Ends when nothing happened for ``quiet`` seconds, so that a dead connection is noticed.

        :param since_ns: nanoseconds since the epoch by the engine's clock; the engine remembers
            its last few hundred events, until it restarts
        """
        query = {
            "since": f"{since_ns // 10**9}.{since_ns % 10**9:09}",
            "filters": json.dumps(
                {"type": ["container"], "label": [label], "event": list(actions)}
            ),
        }
        try:
            # the SDK's own call waits without a bound
            with (
                self._translated("the events"),
                self._client.get(
                    self._path("/events"), params=query, stream=True, timeout=quiet
                ) as response,
            ):
                response.raise_for_status()
                for line in response.iter_lines(chunk_size=None):
                    yield _event(json.loads(line))
        except exception.EngineUnavailable as error:
            if not _is_read_timeout(error.__cause__):
                raise

    # -- images -------------------------------------------------------------------------------

    def inspect_image(self, name: str) -> EngineImage:
        """Return an image by name or id.

        :raises EngineImageNotFound: there is none
        """
        with self._translated("an image's inspection"):
            found = self._client.inspect_image(name)
        config = found.get("Config") or {}
        return EngineImage(
            id=found["Id"],
            size_bytes=found["Size"],
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            stop_signal=config.get("StopSignal") or "",
            platform=f"{found.get('Os', '')}/{found.get('Architecture', '')}",
            named_at=_time((found.get("Metadata") or {}).get("LastTagTime")),
        )

    def layer_folders(self, image: str, author: str) -> tuple[str, ...]:
        """Return where an image's highest layers are that its history says were made by ``author``.

        Only the storage driver overlay2 has such folders.
        """
        with self._translated("an image's history"):
            history = self._client.history(image)
            storage = self._client.inspect_image(image)["GraphDriver"]
        made = itertools.takewhile(lambda entry: entry["CreatedBy"] == author, history)
        if storage["Name"] != "overlay2":
            return ()
        folders = [storage["Data"]["UpperDir"], *storage["Data"].get("LowerDir", "").split(":")]
        return tuple(folders[: len(list(made))])

    def list_images(self, pattern: str) -> dict[str, int]:
        """Return the names that match a pattern, each with its image's size in bytes."""
        with self._translated("the list of images"):
            rows = self._client.images(filters={"reference": pattern})
        return {
            name: row["Size"]
            for row in rows
            for name in row.get("RepoTags") or ()
            if not name.startswith("<none>")
        }

    def resolve_digest(self, name: str, registry: str, credentials_path: str) -> str:
        """Return the digest that a name has in its registry now.

        :param credentials_path: a file as of ``docker login``; may be empty
        :raises EngineError: the registry does not answer, or does not tell
        """
        with self._of_registry("a look into a registry"):
            found = self._client.inspect_distribution(
                name, auth_config=read_credentials(registry, credentials_path)
            )
        digest = str(found["Descriptor"]["digest"])
        if not _DIGEST.fullmatch(digest):
            raise exception.EngineError(
                operation="a look into a registry", reason="the registry's digest is malformed"
            )
        return digest

    def pull_image(
        self, repository: str, digest: str, registry: str, credentials_path: str
    ) -> None:
        """Fetch an image from a registry, under its digest alone.

        :raises EngineError: the registry does not answer, or has no such image
        """
        credentials = read_credentials(registry, credentials_path)
        operation = "an image of a registry"
        # the SDK's own call waits without a bound
        with (
            self._of_registry(operation),
            self._client.post(
                self._path("/images/create"),
                params={"fromImage": repository, "tag": digest},
                headers={"X-Registry-Auth": auth.encode_header(credentials)} if credentials else {},
                stream=True,
                timeout=self._load_timeout,
            ) as response,
        ):
            for _ in self._told(response, operation):
                pass

    def _told(self, response: Any, operation: str) -> Iterator[dict[str, Any]]:
        """Yield what the engine says while it talks to a registry.

        :raises EngineError: the registry refuses
        """
        self._client._raise_for_status(response)
        for line in filter(None, response.iter_lines(chunk_size=None)):
            message = json.loads(line)
            if "error" in message:
                raise exception.EngineError(operation=operation, reason=_concise(message["error"]))
            yield message

    def push_image(self, repository: str, tag: str, registry: str, credentials_path: str) -> str:
        """Put an image into a registry, which gets the layers that it lacks; return its digest.

        :raises EngineError: the registry does not answer, or refuses
        """
        credentials = read_credentials(registry, credentials_path)
        operation = "an image for a registry"
        digest = ""
        with (
            self._of_registry(operation),
            self._client.post(
                self._path(f"/images/{repository}/push"),
                params={"tag": tag},
                headers={"X-Registry-Auth": auth.encode_header(credentials)},
                stream=True,
                timeout=self._load_timeout,
            ) as response,
        ):
            for message in self._told(response, operation):
                digest = (message.get("aux") or {}).get("Digest", digest)
        if not _DIGEST.fullmatch(digest):
            raise exception.EngineError(operation=operation, reason="it got no digest")
        return digest

    def load_image(self, chunks: Iterable[bytes]) -> str:
        """Load an archive of one image without tags, streamed; return the image's id."""
        loaded = ""
        with self._translated("an image archive"):
            client = self._connect(self._load_timeout)
            try:
                for message in client.load_image(chunks, quiet=True):
                    if "error" in message:
                        raise exception.EngineError(
                            operation="an image archive", reason=message["error"]
                        )
                    _, marker, tail = message.get("stream", "").partition("Loaded image ID: ")
                    loaded = tail.strip() if marker else loaded
            finally:
                client.close()
        if not loaded:
            raise exception.EngineError(
                operation="an image archive", reason="it named no image that it loaded"
            )
        return loaded

    def save_image(self, name: str) -> Iterator[bytes]:
        """Yield the archive of an image, streamed."""
        with self._translated("an image's archive"):
            client = self._connect(self._load_timeout)
            try:
                yield from client.get_image(name)
            finally:
                client.close()

    def tag_image(self, image_id: str, repository: str, tag: str) -> None:
        """Give an image a name of ours."""
        with self._translated("a tag"):
            self._client.tag(image_id, repository, tag)

    def remove_image(self, name: str) -> None:
        """Remove an image's name, and the image with its last name; absent is fine."""
        with (
            contextlib.suppress(exception.EngineImageNotFound),
            self._translated("an image's removal"),
        ):
            self._client.remove_image(name)

    # -- requests -----------------------------------------------------------------------------

    def _upgrade(
        self, path: str, query: Mapping[str, Any], body: Any, terminal_path: str
    ) -> Terminal:
        """Make a request after which its connection is a terminal."""
        if self._url.startswith("https:"):
            raise exception.EngineError(
                operation="a terminal", reason="its connection is encrypted; use a Unix socket"
            )
        # of its own: this connection serves no other request
        client = self._connect(self._timeout)
        try:
            response = client.post(
                self._path(path),
                params=query,
                json=body,
                headers={"Connection": "Upgrade", "Upgrade": "tcp"},
                stream=True,
                timeout=self._timeout,
            )
            client._raise_for_status(response)
            # as the SDK finds it, whose own call drops what has come already
            reader = response.raw._fp.fp
            reader.raw._sock.setblocking(False)
            early = bytes(reader.peek())
            connection = socket.socket(fileno=os.dup(reader.fileno()))
        finally:
            client.close()
        return Terminal(connection, early, terminal_path)

    @property
    def _client(self) -> docker.APIClient:
        # requests promises no thread safety, so each thread has a session of its own
        if not hasattr(self._local, "client"):
            self._local.client = self._connect(self._timeout)
        return self._local.client

    def _path(self, path: str) -> str:
        """Return the address of a resource, for requests that the SDK has no call for."""
        return f"{self._client.base_url}/v{self._client.api_version}{path}"

    def _connect(self, timeout: int) -> docker.APIClient:
        with contextlib.closing(self._open(_version(MINIMUM_API_VERSION), timeout)) as first:
            version = first.version(api_version=False)["ApiVersion"]
        if tuple(map(int, version.split("."))) < MINIMUM_API_VERSION:
            raise exception.InvalidConfiguration(
                reason=f"the engine at {self._url} speaks API {version}; "
                f"Docker Engine 20.10 or newer is needed"
            )
        return self._open(version, timeout)

    def _open(self, version: str, timeout: int) -> docker.APIClient:
        # the SDK would ask for the version before it could be told to ignore the environment
        client = docker.APIClient(
            self._url, version=version, timeout=timeout, tls=self._tls_config()
        )
        # a proxy and the authorities of the environment have no business between nova-compute and
        # its engine
        client.trust_env = False
        if self._url.startswith("unix:"):
            client.get_adapter(client.base_url).close()
            client.mount(client.base_url, _OnePool(self._url.removeprefix("unix:"), timeout))
        return client

    def _tls_config(self) -> docker.tls.TLSConfig | None:
        if not self._url.startswith("https:"):
            return None
        own = (self._tls.certificate, self._tls.key) if self._tls.certificate else None
        try:
            # there is no option to trust whoever answers
            return docker.tls.TLSConfig(client_cert=own, ca_cert=self._tls.ca, verify=True)
        except errors.TLSParameterError as error:
            raise exception.InvalidConfiguration(reason=str(error)) from error

    @contextlib.contextmanager
    def _of_registry(self, operation: str) -> Iterator[None]:
        """Translate as ever, but a registry that hangs is no engine that is away."""
        try:
            with self._translated(operation):
                yield
        except exception.EngineUnavailable as error:
            if not _is_read_timeout(error.__cause__):
                raise
            raise exception.EngineError(
                operation=operation, reason="the registry does not answer"
            ) from error

    @contextlib.contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        try:
            yield
        except errors.ImageNotFound as error:
            raise exception.EngineImageNotFound(
                operation=operation, reason=error.explanation
            ) from error
        except errors.NotFound as error:
            missing_image = "no such image" in str(error.explanation).lower()
            kind = exception.EngineImageNotFound if missing_image else exception.ContainerNotFound
            raise kind(operation=operation, reason=error.explanation) from error
        except errors.APIError as error:
            raise exception.EngineError(
                operation=operation, reason=_concise(error.explanation or str(error))
            ) from error
        except (requests.RequestException, errors.DockerException) as error:
            raise exception.EngineUnavailable(url=self._url, reason=str(error)) from error


def _version(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))


def _concise(text: str) -> str:
    """Return an error of the engine without what its layers prepend to the cause.

    Nor with what a registry answered: it can lead the engine to any service that the host reaches.
    """
    return _ANSWER.sub(r"\1", _WRAPPING.sub("", text)).removesuffix(": unknown")


def _is_read_timeout(error: BaseException | None) -> bool:
    # a time-out while the body is read arrives as a ConnectionError around urllib3's
    return isinstance(error, requests.ReadTimeout) or (
        isinstance(error, requests.ConnectionError)
        and bool(error.args)
        and isinstance(error.args[0], urllib3.exceptions.ReadTimeoutError)
    )


def _config(spec: ContainerSpec) -> dict[str, Any]:
    """Return the body of the request that creates the container."""
    config: dict[str, Any] = {
        "Image": spec.image_id,
        "Hostname": spec.hostname,
        "Labels": dict(spec.labels),
        # a terminal, so that init systems and login prompts find the console a server has
        "Tty": True,
        "OpenStdin": True,
        # libnetwork stays out; the runtime shim joins the instance's namespace
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "Runtime": spec.runtime,
            "RestartPolicy": {"Name": "no"},
            **_resources(spec.limits),
            **_isolation(spec.isolation),
            "Mounts": [
                *(
                    {
                        "Type": "bind",
                        "Source": m.source,
                        "Target": m.target,
                        "ReadOnly": not m.writable,
                    }
                    for m in spec.mounts
                ),
                *map(_overlay, spec.overlays),
            ],
            "Devices": [
                *(
                    {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}
                    for path in spec.isolation.devices
                ),
                *(
                    {"PathOnHost": d.source, "PathInContainer": d.target, "CgroupPermissions": "r"}
                    for d in spec.devices
                ),
            ],
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": f"{spec.console_log_max_mb * 512}k", "max-file": "2"},
            },
        },
    }
    if spec.entrypoint:
        config["Entrypoint"] = list(spec.entrypoint)
        config["Cmd"] = list(spec.command)
    if spec.stop_signal:
        config["StopSignal"] = spec.stop_signal
    if spec.systemd:
        # https://systemd.io/CONTAINER_INTERFACE; the runtime shim knows such a server by its /run
        config["Env"] = ["container=docker"]
        config["HostConfig"] |= {"CgroupnsMode": "private", "Tmpfs": _SYSTEMD_TMPFS}
    return config


def _overlay(overlay: Overlay) -> dict[str, Any]:
    # a volume without a name goes with its container, that is the folder it was mounted at
    options = {"type": "overlay", "device": "overlay", "o": overlay.options}
    return {
        "Type": "volume",
        "Target": overlay.target,
        "VolumeOptions": {
            "NoCopy": True,
            "Labels": {naming.LABEL_OVERLAY: "1"},
            "DriverConfig": {"Name": "local", "Options": options},
        },
    }


def _resources(limits: Limits) -> dict[str, Any]:
    """Return those limits that the engine keeps itself, in its words."""
    return {
        "CpuShares": limits.cpu_shares,
        "CpuPeriod": limits.cpu_period_us,
        "CpuQuota": limits.cpu_quota_us,
        "CpusetCpus": _numbers(limits.cpuset_cpus),
        "CpusetMems": _numbers(limits.cpuset_mems),
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes + limits.swap_bytes,
        "PidsLimit": limits.pids,
        "StorageOpt": {"size": str(limits.disk_bytes)} if limits.disk_bytes else {},
    }


def _changes(limits: Limits) -> dict[str, Any]:
    """Return the body of an update, in which 0 and nothing mean no change."""
    changes = {**_resources(limits), "CpuQuota": limits.cpu_quota_us or -1}
    del changes["StorageOpt"]
    return changes


def _event(message: Mapping[str, Any]) -> ContainerEvent:
    attributes = message["Actor"]["Attributes"]
    return ContainerEvent(
        name=attributes.get("name", ""),
        action=message["Action"],
        time_ns=message["timeNano"],
        attributes=attributes,
    )


def _isolation(isolation: Isolation) -> dict[str, Any]:
    config: dict[str, Any] = {
        "CapDrop": ["ALL"],
        "CapAdd": list(isolation.capabilities),
        "OomScoreAdj": isolation.oom_score_adj,
        "Ulimits": [
            {"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard}
            for limit in isolation.resource_limits
        ],
    }
    if isolation.shm_bytes is not None:
        config["ShmSize"] = isolation.shm_bytes
    if isolation.nesting:
        # their profiles forbid what making a container takes
        config["SecurityOpt"] = ["apparmor=unconfined", "seccomp=unconfined"]
    return config


def read_credentials(registry: str, path: str) -> dict[str, Any]:
    """Return a registry's credentials in a file as of ``docker login``; its path may be empty."""
    # never those of the home folder, which the SDK would take by itself
    return (auth.load_config(path).resolve_authconfig(registry) if path else None) or {}


def _time(text: str | None) -> datetime.datetime | None:
    # a year 1 is the engine's word for never
    if not text or text.startswith("0001-"):
        return None
    found: datetime.datetime = timeutils.normalize_time(timeutils.parse_isotime(text))
    return found


def _numbers(numbers: frozenset[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _only_file(chunks: Iterable[bytes]) -> bytes | None:
    """Return the content of an archive's first entry, if it is a small plain file."""
    content = b""
    for chunk in chunks:
        content += chunk
        if len(content) > _LARGEST_READ:
            return None
    # the file may shrink while the engine reads it
    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=io.BytesIO(content)) as read:
        entry = read.next()
        source = read.extractfile(entry) if entry is not None and entry.isreg() else None
        return source.read() if source is not None else None
    return None


def _usage(stats: Mapping[str, Any]) -> Usage:
    def total(kind: str, operation: str) -> int:
        rows = stats["blkio_stats"].get(kind) or ()
        return sum(row["value"] for row in rows if row["op"].lower() == operation)

    cpu, memory = stats["cpu_stats"]["cpu_usage"], stats["memory_stats"]
    return Usage(
        cpu_nanoseconds=cpu["total_usage"],
        cpu_nanoseconds_each=tuple(cpu.get("percpu_usage") or ()),
        memory_bytes=memory.get("usage", 0),
        memory_limit_bytes=memory.get("limit", 0),
        disk_read_bytes=total("io_service_bytes_recursive", "read"),
        disk_read_requests=total("io_serviced_recursive", "read"),
        disk_write_bytes=total("io_service_bytes_recursive", "write"),
        disk_write_requests=total("io_serviced_recursive", "write"),
    )
