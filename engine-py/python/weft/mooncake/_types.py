"""The small types of Mooncake's module."""

from __future__ import annotations

import enum


class TransferOpcode(enum.Enum):
    """Which way bytes go."""

    Read = 0
    """From the peer to here."""
    Write = 1
    """From here to the peer."""

    def __int__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value


class TransferNotify:
    """A notification: what it is about, and the message."""

    __slots__ = ("msg", "name")

    name: str
    msg: str

    def __init__(self, name: str = "", msg: str = "") -> None:
        self.name = name
        self.msg = msg

    def __repr__(self) -> str:
        return f"TransferNotify(name={self.name!r}, msg={self.msg!r})"
