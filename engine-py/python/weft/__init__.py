"""Moves memory between processes and machines: KV cache, weights, tensors.

An `Engine` registers memory, so that peers can read or write it without this program taking part, and opens the memory of peers
as `Segment`s. Reads and writes name a part of each side::

    import weft

    with weft.Engine(listen="10.0.0.7:9000") as decode:
        kv = decode.register(pool, name="kv")          # an array, a tensor, a bytearray, …
        note = decode.notification()                   # somebody says that something is there

    with weft.Engine() as prefill:
        staging = prefill.register(array)
        remote = prefill.open("10.0.0.7:9000")
        prefill.write(staging[0:4096], remote["kv"][8192:12288])
        remote.notify(b"page 2")

Several requests travel together in a `Batch`; its `Transfer` can be waited for, polled or awaited. Which way the bytes go is
decided when a segment is opened: EFA where both sides have it, TCP otherwise; `Segment.path` tells. libfabric and CUDA are looked for
at run time, so the same wheel works where they are absent.

Nothing here holds the GIL while it waits. `WEFT_LOG` (such as `info`) says what the engine logs to standard error.

`weft.mooncake` is a drop-in for `mooncake.engine`.
"""

from ._errors import (
    CancelledError,
    ClosedError,
    Error,
    InUseError,
    PeerError,
    RangeError,
    RefusedError,
    SettingError,
    TimeoutError,
    UnavailableError,
)
from ._memory import Address
from ._weft import (
    Batch,
    Engine,
    LocalRange,
    Notification,
    Region,
    RemoteBuffer,
    RemoteRange,
    Segment,
    Transfer,
    __version__,
)

__all__ = [
    "Address",
    "Batch",
    "CancelledError",
    "ClosedError",
    "Engine",
    "Error",
    "InUseError",
    "LocalRange",
    "Notification",
    "PeerError",
    "RangeError",
    "RefusedError",
    "Region",
    "RemoteBuffer",
    "RemoteRange",
    "Segment",
    "SettingError",
    "TimeoutError",
    "Transfer",
    "UnavailableError",
    "__version__",
]
