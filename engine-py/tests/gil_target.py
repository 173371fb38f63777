"""A target of 1 GiB, for the test of the GIL and the benchmark."""

from __future__ import annotations

import sys

import weft
from helpers import reply

engine = weft.Engine(protocol="tcp")
region = engine.register(bytearray(1 << 30), name="kv")
reply({"name": engine.name})
sys.stdin.read()
engine.close()
