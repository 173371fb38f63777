"""Waits until Ctrl-C: `interrupted.py WHAT TARGET`."""

from __future__ import annotations

import sys
import time

import weft
from weft.mooncake import TransferEngine

what, target = sys.argv[1:]


def say(text: str) -> None:
    print(text, flush=True)


if what == "mooncake":
    mooncake = TransferEngine()
    assert mooncake.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    here, there = mooncake.allocate_managed_buffer(64), mooncake.get_first_buffer_address(target)
else:
    engine = weft.Engine(protocol="tcp")
    local = engine.register(bytearray(64))
    remote = engine.open(target)["kv"]
say("waiting")
time.sleep(0.5)  # the test stops the target meanwhile; a transfer that was faster does no harm
say("now")
try:
    if what == "transfer":
        while True:
            engine.start_write(local, remote[0:64], timeout=600).wait()
    elif what == "notification":
        engine.notification()
    else:
        while True:
            mooncake.transfer_sync_write(target, here, there, 64)
except KeyboardInterrupt:
    say("interrupted")
