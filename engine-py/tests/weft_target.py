"""The other process of the tests of `weft`: registers a pool and does as it is told."""

from __future__ import annotations

import json
import sys

import weft
from helpers import reply

LENGTH = 1 << 20

pool = bytearray(LENGTH)
engine = weft.Engine(protocol=sys.argv[1] if len(sys.argv) > 1 else "tcp")
region = engine.register(pool, name="kv")
reply({"name": engine.name})
for line in sys.stdin:
    question = json.loads(line)
    what = question["what"]
    if what == "fill":
        data = bytes.fromhex(question["data"])
        pool[question["at"] : question["at"] + len(data)] = data
        reply("ok")
    elif what == "show":
        reply(pool[question["at"] : question["at"] + question["length"]].hex())
    elif what == "note":
        note = engine.notification(timeout=20)
        reply(note and [note.sender, note.payload.hex()])
    elif what == "unregister":
        region.unregister()
        reply("ok")
    elif what == "register":
        region = engine.register(pool, name="kv")
        reply("ok")
engine.close()
