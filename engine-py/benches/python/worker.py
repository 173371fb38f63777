"""One side of the benchmark: `worker.py target|initiator MODULE PROTOCOL LENGTH`, then one JSON question a line.

Answers with the time that a call took; the calls are those that SGLang and vLLM make.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import time
from typing import Any

role, name, protocol, length = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
engine = importlib.import_module(name).TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "") == 0
memory = ctypes.create_string_buffer(length)
address = ctypes.addressof(memory)
ctypes.memset(address, 1, length)  # every page is there
assert engine.register_memory(address, length) == 0


def reply(answer: object) -> None:
    print("> " + json.dumps(answer), flush=True)


reply({"session": f"127.0.0.1:{engine.get_rpc_port()}", "address": address})
for line in sys.stdin:
    question = json.loads(line)
    session, remote = question["session"], question["address"]
    size, batch, seconds = question["size"], question["batch"], question["seconds"]
    write = question["op"] == "write"
    if batch == 1:
        call = engine.transfer_sync_write if write else engine.transfer_sync_read
        arguments: tuple[Any, ...] = (session, address, remote, size)
    else:
        call = engine.batch_transfer_sync_write if write else engine.batch_transfer_sync_read
        offsets = [i * size for i in range(batch)]
        arguments = (session, [address + o for o in offsets], [remote + o for o in offsets], [size] * batch)
    took = []
    end = time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        code = call(*arguments)
        now = time.perf_counter()
        if code != 0:
            reply({"error": f"code {code}"})
            break
        took.append(now - began)
        if now >= end:
            took.sort()
            total = size * batch * len(took)
            reply({"gb_per_s": total / sum(took) / 1e9, "p50_us": took[len(took) // 2] * 1e6})
            break
