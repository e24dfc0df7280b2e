# SPDX-License-Identifier: Apache-2.0
"""Exceptions of the driver, each derived from the type that Nova's compute manager acts on.

The manager decides by type (``_build_and_run_instance``, ``_sync_power_states``); each class names
the effect.
"""

from types import TracebackType
from typing import Any

import oslo_messaging
from cursive.exception import SignatureVerificationError
from nova import exception
from nova.i18n import _


class Expected(oslo_messaging.ExpectedException):
    """An exception whose reason is the user's request or image.

    oslo.messaging logs other exceptions of the manager as errors with a traceback.
    """

    def __init__(self, *message: Any, **_: Any) -> None:
        # The base class's function takes no message.
        Exception.__init__(self, *message)

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, TracebackType | None]:
        """What oslo.messaging sends to the caller."""
        return type(self), self, self.__traceback__


class EngineUnavailable(exception.VirtDriverNotReady):
    """The engine does not answer.

    ``VirtDriverNotReady`` makes the manager skip its periodic tasks, so that it takes no instance
    for stopped or deleted while the engine is down.
    """

    msg_fmt = _("The Docker engine at %(url)s does not answer: %(reason)s")


class EngineError(exception.NovaException):
    """The engine answered a request with an error."""

    msg_fmt = _("The Docker engine refused %(operation)s: %(reason)s")


class ContainerNotFound(EngineError):
    """The container does not exist in the engine."""


class ContainerLost(exception.NovaException):
    """The engine has no container of an instance that Nova has on this host.

    It is not ``InstanceNotFound``, which the manager takes for a deletion of the instance in Nova:
    then it leaves a rebuild unfinished.
    """

    msg_fmt = _(
        "Container %(name)s does not exist in the Docker engine of its host, so the files of the "
        "server are lost or out of reach. A rebuild of the server creates it anew from its image."
    )


class ContainerHangs(EngineError):
    """The engine answers, but not about one container, because an operation on it hangs."""

    msg_fmt = _(
        "The Docker engine answers, but it did not finish a request %(operation)s in %(seconds)s s"
    )


class EngineImageNotFound(EngineError):
    """The image does not exist in the engine."""


class ProcessEnded(EngineError):
    """The first process of a container exited as soon as it was started."""

    msg_fmt = _("The first process ended at once with exit status %(code)s; its output: %(lines)s")


class InvalidConfiguration(exception.InvalidConfiguration):
    """The driver cannot work on this host as it is set up; nova-compute must not start."""

    msg_fmt = _("novadocker cannot work on this host: %(reason)s")


class InvalidImage(exception.ImageUnacceptable, Expected):
    """The image cannot be booted on any host; the manager aborts the build."""

    msg_fmt = _("Image %(image_id)s cannot be booted: %(reason)s")


class DownloadFailed(exception.NovaException):
    """The download of an image failed on this host; Nova tries another host."""

    msg_fmt = _("Failed to download image %(image_id)s from Glance: %(reason)s")


class UnfitHost(exception.NovaException):
    """The image cannot be booted on this host; Nova tries another host."""

    msg_fmt = _("This host cannot boot image %(image_id)s: %(reason)s")


class PlugFailed(exception.VirtualInterfacePlugException):
    """A VIF could not be plugged; at the start of nova-compute this sets the instance to ERROR."""

    msg_fmt = _("Failed to plug port %(port_id)s: %(reason)s")


class StartFailed(exception.BuildAbortException):
    """The instance cannot run as requested on any host; the manager aborts the build.

    The text of the base class is left out, because Nova shows a user at most 255 characters.
    """

    msg_fmt = "%(reason)s"


class RequestRefused(StartFailed, Expected):
    """The user's request or image is the reason that the instance cannot run on any host."""


class InvalidLimits(exception.BuildAbortException, Expected):
    """The flavor or image requests limits that no host can set; the manager aborts the build."""

    msg_fmt = _("The limits that the flavor or image requests cannot be set: %(reason)s")


class BuildRefused(exception.InstanceUnacceptable):
    """The user's request or image is the reason that the instance cannot run on any host.

    In ``prepare_for_spawn`` the manager aborts the build for this type, without a traceback.
    """

    msg_fmt = "%(reason)s"


class HostUnready(exception.ComputeResourcesUnavailable):
    """A build cannot begin on this host; Nova tries another host, without a traceback."""

    msg_fmt = "%(reason)s"


class SnapshotFailed(exception.NovaException):
    """The snapshot of an instance failed; the manager deletes the image and resets the task."""

    msg_fmt = _("Failed to create an image of the instance: %(reason)s")


class GlanceUnavailable(exception.NovaException):
    """Glance, or Keystone for it, did not answer a request of the driver."""

    msg_fmt = _("Glance does not answer: %(reason)s")


class NeutronUnavailable(exception.NovaException):
    """Neutron did not answer a request of the driver."""

    msg_fmt = _("Neutron does not answer: %(reason)s")


class LimitsNotKept(exception.NovaException):
    """The kernel did not accept a limit of an instance."""

    msg_fmt = _("Failed to set the limits of the instance: %(reason)s")


class RanMeanwhile(exception.NovaException):
    """A stopped or paused container ran while its files were read."""

    msg_fmt = _("Container %(name)s ran while its files were read")


class ResizeRefused(exception.NovaException, Expected):
    """The driver refuses a resize; the instance is unchanged."""

    msg_fmt = "%(reason)s"


class RegistryFailed(exception.NovaException):
    """A request to a registry failed."""

    msg_fmt = _("Registry %(registry)s cannot be used: %(reason)s")


class ImageTooLarge(exception.NovaException):
    """An image of a registry is larger than the root disk of the flavor."""

    msg_fmt = _(
        "Image %(name)s has %(size)d bytes or more, but the flavor's root disk has only %(most)d"
    )


class PullCutOff(exception.NovaException):
    """The pull of an image took too much space or time; it is not tried from another source."""

    msg_fmt = _("Image %(name)s cannot be pulled: %(reason)s")


class ImageNotVerified(exception.NovaException):
    """The operator's command did not confirm an image of a registry."""

    msg_fmt = _("Image %(name)s is not used: %(reason)s")


class VerificationFailed(ImageNotVerified):
    """The operator's command did not run to its end on this host."""


class RescueRefused(exception.NovaException, Expected):
    """The driver refuses a rescue; the instance is unchanged."""

    msg_fmt = "%(reason)s"


class VolumeFailed(exception.VolumeAttachFailed):
    """A volume could not be attached, detached or extended on this host."""

    msg_fmt = _("Volume %(volume_id)s failed on this host: %(reason)s")


class VolumeRefused(exception.VolumeAttachFailed, Expected):
    """The driver refuses a volume that no host could attach."""

    msg_fmt = _("Volume %(volume_id)s cannot be attached: %(reason)s")


class ViewUnavailable(exception.NovaException):
    """lxcfs on this host cannot give an instance its own /proc now; Nova tries another host."""

    msg_fmt = _("lxcfs at %(folder)s on this host cannot be used: %(reason)s")


REQUEST_FAULTS = (
    RequestRefused,
    BuildRefused,
    InvalidLimits,
    exception.ImageUnacceptable,
    exception.FlavorDiskTooSmall,
    exception.FlavorMemoryTooSmall,
    exception.ImageNotActive,
    exception.ImageNotFound,
    exception.InvalidDiskFormat,
    exception.InvalidDiskInfo,
    exception.InvalidInput,
    exception.VolumeEncryptionNotSupported,
    SignatureVerificationError,
    exception.CertificateValidationFailed,
    # The subnet may be the tenant's. Nova raises it at the first use of the ports, in the driver.
    exception.NoMoreFixedIps,
)
"""Exceptions of a build that name a reason of its tenant, so the host is not to blame."""

DELETED = (exception.InstanceNotFound, exception.UnexpectedDeletingTaskStateError)
"""Exceptions of a build whose instance the user deleted meanwhile; the manager gives it up."""
