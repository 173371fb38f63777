"""How an event loop waits for a transfer: the engine writes to a file descriptor, so no thread is spent and none needs the GIL."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ._weft import Wake

if TYPE_CHECKING:
    from ._weft import Transfer

# While another thread blocks on the same transfer, the loop asks again after this time (seconds).
_BUSY = 0.005


async def finish(transfer: Transfer) -> None:
    """Wait for a transfer; raises what it ended with."""
    loop = asyncio.get_running_loop()
    wake = Wake()
    while (state := transfer._watch(wake)) != "done":
        if state == "busy":
            await asyncio.sleep(_BUSY)
            continue
        ready = loop.create_future()
        loop.add_reader(wake.fileno(), _set, ready)
        try:
            await ready
        finally:
            loop.remove_reader(wake.fileno())
            wake.clear()


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
