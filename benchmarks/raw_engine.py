# SPDX-License-Identifier: Apache-2.0
"""The commands of an operator without Nova, on a compute host's own engine."""

import subprocess
from pathlib import Path

from devcloud.steps import StepFailed

_COMMIT = "benchmark-commit"
_SECONDS = 600


class RawEngine:
    """Runs the command ``docker``; keeps its containers and images until ``clear``."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._containers: list[str] = []
        self._images: list[str] = []

    def load_and_run(self, archive: Path) -> None:
        """Load an archive without tags, and run a container of it."""
        loaded = self._docker("load", "--quiet", "--input", archive)
        image = loaded.rpartition("Loaded image ID: ")[2]
        self._images.append(image)
        self._containers.append(
            self._docker("run", "--detach", "--tty", "--network", "none", image)
        )

    def commit_and_save(self, container: str, target: Path) -> None:
        """Create an image of a container, and an archive of the image."""
        self._docker("commit", container, _COMMIT)
        self._docker("save", "--output", target, _COMMIT)

    def forget_commit(self) -> None:
        """Delete the image of the last commit."""
        self.remove_image(_COMMIT)

    def run_inside(self, container: str, script: str) -> None:
        """Run a shell script in a container."""
        self._docker("exec", container, "sh", "-c", script)

    def remove_image(self, name: str) -> None:
        """Delete an image. Does nothing if the image does not exist."""
        if self._docker("images", "--quiet", name):
            self._docker("rmi", "--force", name)

    def clear(self) -> None:
        """Delete the containers and images that this object keeps."""
        if self._containers:
            self._docker("rm", "--force", "--volumes", *self._containers)
        self._containers.clear()
        for image in self._images:
            self._docker("rmi", "--force", image)
        self._images.clear()

    def _docker(self, *words: str | Path) -> str:
        command = ["docker", "--host", f"unix://{self._socket}", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
        if done.returncode != 0:
            raise StepFailed(
                f"The command docker {words[0]} failed: {done.stderr.strip()}", "docker info"
            )
        return done.stdout.strip()
