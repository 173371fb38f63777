"""What can go wrong. Messages are the engine's: they name the peer, the buffer or the setting, and say what to do next."""

from __future__ import annotations

import builtins


class Error(Exception):
    """Base class of everything that this package raises by itself.

    When one of several requests of a batch failed, the exception tells how many did.
    """

    failed: int = 1
    """Requests that failed."""
    total: int = 1
    """Requests of the batch."""
    index: int = 0
    """Index of the first that failed; this exception is its."""


class SettingError(Error, ValueError):
    """A setting is out of its range, or two contradict each other."""


class PeerError(Error, ConnectionError):
    """A peer cannot be found, was lost, or does not answer as it should."""


class RefusedError(Error, PermissionError):
    """The memory was not registered for this, or the peer has taken it back."""


class RangeError(Error, LookupError):
    """Addresses that lie in no registered buffer, or sides of different length."""


class UnavailableError(Error, OSError):
    """A path was asked for that is not there; it is never replaced by another one in silence."""


class InUseError(Error):
    """Memory is still used by requests in flight."""


class TimeoutError(Error, builtins.TimeoutError):  # noqa: A001 (as asyncio's and concurrent.futures' are called)
    """A deadline passed. Where that was only the caller's patience, the transfer goes on."""


class CancelledError(Error):
    """The request was cancelled."""


class ClosedError(Error):
    """The engine has been closed."""
