# SPDX-License-Identifier: Apache-2.0
"""Errors of the driver, each a Nova exception of the type that Nova's manager acts on.

The manager decides by type (``_build_and_run_instance``, ``_sync_power_states``): see each class.
"""

from nova import exception


class EngineUnavailable(exception.VirtDriverNotReady):
    """The engine does not answer.

    ``VirtDriverNotReady`` makes the manager skip its periodic tasks, so that a server is never
    taken for stopped or deleted while the engine is away.
    """

    msg_fmt = "The Docker engine at %(url)s does not answer: %(reason)s"


class EngineError(exception.NovaException):
    """The engine answered a request with an error."""

    msg_fmt = "The Docker engine refused %(operation)s: %(reason)s"


class ContainerNotFound(EngineError):
    """The engine knows no such container."""


class EngineImageNotFound(EngineError):
    """The engine knows no such image."""


class ProcessEnded(EngineError):
    """A server's first process ended as soon as it was started."""

    msg_fmt = "Its first process ended at once with exit code %(code)s; it wrote: %(lines)s"


class InvalidConfiguration(exception.InvalidConfiguration):
    """The host is set up in a way the driver cannot work with; nova-compute must not start."""

    msg_fmt = "novadocker cannot work on this host: %(reason)s"


class InvalidImage(exception.ImageUnacceptable):
    """The image can't become a server on any host: the manager aborts the build."""

    msg_fmt = "Image %(image_id)s can't be booted: %(reason)s"


class DownloadFailed(exception.NovaException):
    """An image did not come to this host whole; another host may have more luck."""

    msg_fmt = "Image %(image_id)s could not be fetched from Glance: %(reason)s"


class PlugFailed(exception.VirtualInterfacePlugException):
    """A VIF could not be wired; during the start of nova-compute it sets the server to ERROR."""

    msg_fmt = "Port %(port_id)s could not be wired: %(reason)s"


class StartFailed(exception.BuildAbortException):
    """The server can't run as asked, and no other host would help.

    Without the words of its base class: Nova shows a user no more than 255 characters.
    """

    msg_fmt = "%(reason)s"


class InvalidLimits(exception.BuildAbortException):
    """The flavor or the image asks for limits that no host can give."""

    msg_fmt = "The limits that the server asks for can't be set: %(reason)s"


class SnapshotFailed(exception.NovaException):
    """A server can't become an image: the manager removes the image and resets the task."""

    msg_fmt = "No image could be made of the server: %(reason)s"


class LimitsNotKept(exception.NovaException):
    """The kernel does not keep a server's limits."""

    msg_fmt = "The server's limits can't be set: %(reason)s"


class ResizeRefused(exception.NovaException):
    """A resize can't be done here; nothing was changed."""

    msg_fmt = "%(reason)s"


class RegistryFailed(exception.NovaException):
    """A registry does not take or give what it was asked to."""

    msg_fmt = "The registry %(registry)s can't be used: %(reason)s"


class RescueRefused(exception.NovaException):
    """A server can't be rescued here; nothing of it was changed."""

    msg_fmt = "%(reason)s"


class ViewUnavailable(exception.NovaException):
    """This host can't give a server its own view of /proc now; another host may."""

    msg_fmt = "lxcfs at %(folder)s on this host can't be used: %(reason)s"
