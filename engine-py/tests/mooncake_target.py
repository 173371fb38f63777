"""The other process of the tests of Mooncake's API: `mooncake_target.py MODULE [PROTOCOL] [LENGTH]`."""

from __future__ import annotations

import ctypes
import importlib
import json
import sys

from helpers import array, reply

module = importlib.import_module(sys.argv[1])
protocol = sys.argv[2] if len(sys.argv) > 2 else "tcp"
length = int(sys.argv[3]) if len(sys.argv) > 3 else 4 << 20
memory, address = array(length)
engine = module.TransferEngine()
assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "") == 0
assert engine.register_memory(address, length) == 0
reply({"session": f"127.0.0.1:{engine.get_rpc_port()}", "address": address, "length": length})
for line in sys.stdin:
    question = json.loads(line)
    what = question["what"]
    if what == "fill":
        data = bytes.fromhex(question["data"])
        ctypes.memmove(address + question["at"], data, len(data))
        reply("ok")
    elif what == "show":
        reply(ctypes.string_at(address + question["at"], question["length"]).hex())
    elif what == "notes":
        reply([[note.name, note.msg] for note in engine.get_notifies()])
    elif what == "probe":
        reply(engine.send_probe(question["session"]))
