"""One process of an interop run: `node.py MODULE PROTOCOL LENGTH`, then one JSON question a line, one answer each.

Both modules have the same API, so either is initiator or target.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import sys
import time

name, protocol, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
module = importlib.import_module(name)
engine = module.TransferEngine()
result = engine.initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "")
memory = ctypes.create_string_buffer(length)
address = ctypes.addressof(memory)
registered = engine.register_memory(address, length) if result == 0 else result


def reply(answer: object) -> None:
    print("> " + json.dumps(answer), flush=True)


def fill(seed: int, at: int, size: int) -> bytes:
    """Pseudorandom, the same in every process."""
    data = hashlib.shake_128(f"{seed}:{size}".encode()).digest(min(size, 1 << 20))
    data = (data * (size // len(data) + 1))[:size]
    ctypes.memmove(address + at, data, size)
    return data


def digest(ranges: list[tuple[int, int]]) -> str:
    state = hashlib.sha256()
    for at, size in ranges:
        state.update(memoryview(memory)[at : at + size])
    return state.hexdigest()


reply({"result": result or registered, "session": f"127.0.0.1:{engine.get_rpc_port() if result == 0 else 0}", "address": address})
for line in sys.stdin:
    question = json.loads(line)
    what = question.pop("what")
    if what == "fill":
        fill(question["seed"], question["at"], question["size"])
        reply(0)
    elif what == "clear":
        ctypes.memset(address + question["at"], 0, question["size"])
        reply(0)
    elif what == "digest":
        reply(digest(question["ranges"]))
    elif what == "batch":
        local = [address + at for at in question["local"]]
        opcode = getattr(module.TransferOpcode, question["op"])
        began = time.perf_counter()
        code = engine.batch_transfer_sync(question["session"], local, question["remote"], question["lengths"], opcode)
        reply([code, time.perf_counter() - began])
    elif what == "one":
        call = engine.transfer_sync_write if question["op"] == "Write" else engine.transfer_sync_read
        began = time.perf_counter()
        code = call(question["session"], address + question["local"], question["remote"], question["length"])
        reply([code, time.perf_counter() - began])
    elif what == "notify":
        note = module.TransferNotify(question["name"], question["msg"])
        code = engine.transfer_sync(
            question["session"], address, question["remote"], 1, module.TransferOpcode.Write, note
        )
        reply(code)
    elif what == "notes":
        reply([[note.name, note.msg] for note in engine.get_notifies()])
    elif what == "probe":
        reply(engine.send_probe(question["session"]))
    elif what == "first":
        reply(engine.get_first_buffer_address(question["session"]))
    elif what == "warm":
        reply(engine.warmup_efa_segment(question["session"]))
