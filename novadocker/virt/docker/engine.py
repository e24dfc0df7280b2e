# SPDX-License-Identifier: Apache-2.0
"""The Docker Engine over its REST API: the only module that imports the docker SDK.

One method is one request. Answers become the dataclasses of ``model``, failures the errors of
``novadocker.exception``; nothing here knows Nova's objects.
"""

import contextlib
import io
import re
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import docker
import requests
import urllib3
from docker import errors
from oslo_utils import timeutils

from novadocker import exception
from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerSpec,
    EngineImage,
    EngineInfo,
    Usage,
)

# 1.41 is Engine 20.10's, the oldest that is supported.
MINIMUM_API_VERSION = (1, 41)

# what dockerd, containerd's shim and runc put before the cause of a failed start
_WRAPPING = re.compile(
    r"^((failed to create (shim )?task|OCI runtime \w+ failed|\w+ \w+ failed"
    r"|unable to start container process): )+"
)

# A line of a tail is at most 16 KiB long: the engine splits longer ones.
_LOG_TAIL_LINES = 2000


class Engine:
    """The engine at ``url``; safe to share between threads.

    Every request ends within ``timeout`` seconds without an answer. Every method raises
    ``EngineUnavailable`` when the engine does not answer and ``EngineError`` when it refuses.
    """

    def __init__(self, url: str, timeout: int, load_timeout: int) -> None:
        self._url = url
        self._timeout = timeout
        self._load_timeout = load_timeout
        self._local = threading.local()

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
            )

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

    def remove_container(self, container: str) -> None:
        """Kill and remove a container and its anonymous volumes; absent is fine."""
        with (
            contextlib.suppress(exception.ContainerNotFound),
            self._translated("the removal"),
        ):
            self._client.remove_container(container, v=True, force=True)

    def put_files(self, container: str, files: Mapping[str, bytes]) -> None:
        """Write files, by path below the container's root, owned by root and readable by all.

        The engine unpacks them confined to the container's file system, so no link in the image
        leads out of it. Works on a container that never ran.
        """
        with self._translated("the files"):
            self._client.put_archive(container, "/", _tar(files))

    def read_console(self, container: str) -> bytes:
        """Return the last lines that the container wrote."""
        with self._translated("the console log"):
            return bytes(self._client.logs(container, tail=_LOG_TAIL_LINES))

    def read_usage(self, container: str) -> Usage:
        """Return the counters of a running container."""
        with self._translated("the usage"):
            return _usage(self._client.stats(container, stream=False, one_shot=True))

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
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
        )

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

    @property
    def _client(self) -> docker.APIClient:
        # requests promises no thread safety, so each thread has a session of its own
        if not hasattr(self._local, "client"):
            self._local.client = self._connect(self._timeout)
        return self._local.client

    def _connect(self, timeout: int) -> docker.APIClient:
        client = docker.APIClient(self._url, version="auto", timeout=timeout)
        # a proxy of the environment has no business between nova-compute and its engine
        client.trust_env = False
        if tuple(map(int, client.api_version.split("."))) < MINIMUM_API_VERSION:
            raise exception.InvalidConfiguration(
                reason=f"the engine at {self._url} speaks API {client.api_version}; "
                f"Docker Engine 20.10 or newer is needed"
            )
        return client

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


def _concise(text: str) -> str:
    """Return an error of the engine without what its layers prepend to the cause."""
    return _WRAPPING.sub("", text).removesuffix(": unknown")


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
            "NanoCpus": spec.limits.nano_cpus,
            "CpuShares": spec.limits.cpu_shares,
            "Memory": spec.limits.memory_bytes,
            "MemorySwap": spec.limits.memory_bytes + spec.limits.swap_bytes,
            "PidsLimit": spec.limits.pids,
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": f"{spec.console_log_max_mb * 512}k", "max-file": "2"},
            },
        },
    }
    if spec.entrypoint:
        config["Entrypoint"] = list(spec.entrypoint)
        config["Cmd"] = list(spec.command)
    return config


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


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
