"""Named errors of llumnix; each message is one sentence an operator can act on."""


class LlumnixError(Exception):
    """Base of all errors raised on purpose by llumnix."""


class ConfigError(LlumnixError):
    """A setting is wrong: the message names the key, the value and what was expected."""


class StartupError(LlumnixError):
    """The cluster could not be started; nothing is left running."""


class UnsupportedVersionError(LlumnixError):
    """The installed vLLM is not one this release was written for."""


class UnknownTargetError(LlumnixError):
    """No instance, node, request or migration has the id that was named."""


class RefusedError(LlumnixError):
    """The operation is known but cannot be done now; the message says why."""


class NoInstanceError(LlumnixError):
    """No instance can take requests at present."""


class InstanceLostError(LlumnixError):
    """The instance that ran a request died before the request was finished."""


class RequestAbortedError(LlumnixError):
    """An operator aborted the request."""
