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


class PlugFailed(exception.VirtualInterfacePlugException):
    """A VIF could not be wired; during the start of nova-compute it sets the server to ERROR."""

    msg_fmt = "Port %(port_id)s could not be wired: %(reason)s"


class StartFailed(exception.BuildAbortException):
    """The server can't run as asked, and no other host would help.

    Without the words of its base class: Nova shows a user no more than 255 characters.
    """

    msg_fmt = "%(reason)s"
