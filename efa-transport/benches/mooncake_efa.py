"""Mooncake's EFA transport from Python, as a round-by-round opponent of `bench mooncake`.

target: prints its port and the address of its memory, then waits.
initiator PORT ADDRESS: for each line on standard input, one batch of COUNT writes of SIZE bytes; prints the seconds it took.
"""

import ctypes
import mmap
import os
import sys
import time

from mooncake.engine import TransferEngine

COUNT = int(os.environ["BLOCKS"])
SIZE = int(os.environ["BLOCK_BYTES"])
LEN = COUNT * SIZE


def memory():
    area = mmap.mmap(-1, LEN)
    area.write(b"\x5a" * LEN)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def main():
    engine = TransferEngine()
    if engine.initialize("127.0.0.1", "P2PHANDSHAKE", "efa", "") != 0:
        sys.exit("initialize failed")
    area, address = memory()
    if engine.register_memory(address, LEN) != 0:
        sys.exit("register_memory failed")
    if sys.argv[1] == "target":
        print("READY", engine.get_rpc_port(), address, flush=True)
        sys.stdin.read()
        os._exit(0)
    peer, there = f"127.0.0.1:{sys.argv[2]}", int(sys.argv[3])
    offsets = range(0, LEN, SIZE)
    here = [address + at for at in offsets]
    remote = [there + at for at in offsets]
    lengths = [SIZE] * COUNT
    print("READY", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        status = engine.batch_transfer_sync_write(peer, here, remote, lengths)
        print("TOOK", time.perf_counter() - start if status == 0 else "failed", flush=True)
    os._exit(0)


main()
