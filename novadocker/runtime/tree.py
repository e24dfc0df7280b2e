# SPDX-License-Identifier: Apache-2.0
"""The file system of a container that has no process yet, reached by directory descriptors.

The file system is untrusted. Each component of a path is opened by itself, without following links
and without effect on a device or pipe (``O_PATH`` and ``O_NOFOLLOW``). Symbolic links are resolved
as within the container. Paths below a volume's mount point lead into the volume, which the engine
has not mounted yet; so openat2(2) with ``RESOLVE_IN_ROOT`` can't resolve these paths. Contents are
read from the very file that was examined.
"""

import _stat
import posix

# As in the kernel.
_MAX_LINKS = 40
_MAX_PATH = 4096
# Each component costs a descriptor, of which a process has 1024 by default.
_MAX_DEPTH = 200
_WAYPOINT = posix.O_PATH | posix.O_NOFOLLOW | posix.O_CLOEXEC
_NEW_FILE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC


class Fault(Exception):
    """A failure whose message is for the operator and the tenant."""


class Owner:
    """User and group on the host."""

    def __init__(self, uid: int, gid: int) -> None:
        self.uid = uid
        self.gid = gid


class Node:
    """One component of a path.

    :ivar path: the absolute path in the container
    :ivar descriptor: an ``O_PATH`` descriptor; -1 if the file does not exist
    :ivar mode: type and permissions as in stat(2); 0 if the file does not exist
    """

    def __init__(self, path: str, descriptor: int = -1) -> None:
        self.path = path
        self.descriptor = descriptor
        self.mode = posix.fstat(descriptor).st_mode if descriptor >= 0 else 0

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def exists(self) -> bool:
        """Whether the file exists."""
        return self.descriptor >= 0

    @property
    def is_folder(self) -> bool:
        """Whether this is a directory."""
        return _stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return _stat.S_ISREG(self.mode)

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            posix.close(self.descriptor)


class Tree:
    """The root directory of a container, with its volumes.

    :param root: path on the host
    :param volumes: directories of the host by their absolute paths in the container
    :param owner: the container's user root
    """

    def __init__(self, root: str, volumes: dict[str, str], owner: Owner) -> None:
        self._root = Node("", posix.open(root, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC))
        self._volumes = volumes
        self._owner = owner

    def locate(self, path: str) -> list[Node]:
        """Return the components to which a path leads, from the root on.

        Symbolic links are followed, also in the last component. Components that do not exist are
        at the end. The descriptors stay open until ``release`` or the end of the program.

        :raises Fault: the path has too many links or is too long or too deep
        :raises OSError: a component can't be opened
        """
        nodes = [self._root]
        try:
            self._walk(nodes, path)
        except (Fault, OSError):
            self.release(nodes)
            raise
        return nodes

    def release(self, nodes: list[Node]) -> None:
        """Close what ``locate`` returned, except the root."""
        for node in nodes[1:]:
            node.close()

    def _walk(self, nodes: list[Node], path: str) -> None:
        left = _components(path)
        links = 0
        while left:
            name = left.pop()
            if name == "..":
                if len(nodes) > 1:
                    nodes.pop().close()
                continue
            if len(nodes) > _MAX_DEPTH:
                raise Fault(f"the image has a path of more than {_MAX_DEPTH} directories")
            node = self._open(nodes[-1], name)
            if not _stat.S_ISLNK(node.mode):
                nodes.append(node)
                continue
            link = posix.readlink("", dir_fd=node.descriptor)
            node.close()
            links += 1
            if links > _MAX_LINKS:
                raise Fault("the image has a path with more than 40 symbolic links")
            if link.startswith("/"):
                while len(nodes) > 1:
                    nodes.pop().close()
            left += _components(link)

    def _open(self, parent: Node, name: str) -> Node:
        path = f"{parent.path}/{name}"
        if path in self._volumes:
            return Node(path, posix.open(self._volumes[path], posix.O_PATH | posix.O_CLOEXEC))
        if not parent.exists:
            return Node(path)
        try:
            return Node(path, posix.open(name, _WAYPOINT, dir_fd=parent.descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return Node(path)
        except OSError as error:
            raise Fault(
                f"the path {shown(path)} in the image can't be opened: {error.strerror}"
            ) from error

    def make_folder(self, path: str, mode: int = 0o755, owner: Owner | None = None) -> Node:
        """Create a directory and its missing parents. Does nothing if it exists.

        :param owner: the directory's owner; the parents belong to the container's root
        :raises Fault: a component exists that is not a directory, or can't be created
        """
        nodes = self.locate(path)
        for number, node in enumerate(nodes):
            if node.is_folder:
                continue
            last = number == len(nodes) - 1
            try:
                if node.exists:
                    raise NotADirectoryError(node.path)
                parent = nodes[number - 1].descriptor
                posix.mkdir(node.name, mode if last else 0o755, dir_fd=parent)
                made = owner if owner and last else self._owner
                posix.chown(node.name, made.uid, made.gid, dir_fd=parent, follow_symlinks=False)
                flags = _WAYPOINT | posix.O_DIRECTORY
                nodes[number] = Node(node.path, posix.open(node.name, flags, dir_fd=parent))
            except OSError as error:
                raise Fault(
                    f"the directory {shown(path)} can't be created in the image's file system"
                ) from error
        return nodes[-1]


def _components(path: str) -> list[str]:
    """Return the components of a path, the first one last."""
    if len(path) > _MAX_PATH:
        raise Fault("the image has a path of more than 4096 characters")
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def read(node: Node, limit: int) -> bytes | None:
    """Return the content of a regular file.

    :returns: None if it is larger than ``limit`` bytes
    """
    # The link in /proc leads to the file of the descriptor, whatever has its name now.
    with open(f"/proc/self/fd/{node.descriptor}", "rb", buffering=0) as source:
        return read_all(source.fileno(), limit)


def read_all(descriptor: int, limit: int) -> bytes | None:
    """Return what a descriptor yields; None if it is more than ``limit`` bytes."""
    parts = []
    while limit >= 0 and (part := posix.read(descriptor, min(limit + 1, 1 << 20))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts) if limit >= 0 else None


def overwrite(node: Node, content: bytes) -> None:
    """Replace the content of a regular file, which keeps its owner and permissions."""
    descriptor = posix.open(f"/proc/self/fd/{node.descriptor}", posix.O_WRONLY | posix.O_CLOEXEC)
    _write(descriptor, content)
    posix.ftruncate(descriptor, len(content))
    posix.close(descriptor)


def replace(folder: Node, name: str, content: bytes, mode: int, owner: Owner) -> None:
    """Create or replace a file in a directory. A link of this name is replaced, not followed."""
    new = f"{name}.nova"
    try:  # noqa: SIM105
        posix.unlink(new, dir_fd=folder.descriptor)
    except FileNotFoundError:
        pass
    descriptor = posix.open(new, _NEW_FILE, 0o600, dir_fd=folder.descriptor)
    _write(descriptor, content)
    posix.fchown(descriptor, owner.uid, owner.gid)
    posix.fchmod(descriptor, mode)
    posix.close(descriptor)
    posix.rename(new, name, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[posix.write(descriptor, left) :]


def shown(text: str) -> str:
    """Return a tenant's text as it may be part of a message: short, in printable ASCII."""
    return text[:100].encode("unicode_escape", "backslashreplace").decode("ascii")
