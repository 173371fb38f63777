"""A Mooncake node for the tests: does what it is told on its standard input, one line each, and answers with one line each."""

import ctypes
import sys
import zlib

from mooncake.engine import TransferEngine, TransferNotify, TransferOpcode

SIZE = 8 << 20


def main():
    host, metadata, protocol = sys.argv[1:4]
    engine = TransferEngine()
    if engine.initialize(host, metadata, protocol, "") != 0:
        raise SystemExit("initialize failed")
    memory = ctypes.create_string_buffer(SIZE)
    start = ctypes.addressof(memory)
    if engine.register_memory(start, SIZE) != 0:
        raise SystemExit("register_memory failed")
    name = host if metadata != "P2PHANDSHAKE" else f"{host.split(':')[0]}:{engine.get_rpc_port()}"

    def fill(seed, offset, length):
        block = bytes((seed * 7 + n * 31 + (n >> 8)) & 0xFF for n in range(65536))
        data = (block * (int(length) // 65536 + 1))[: int(length)]
        ctypes.memmove(start + offset, data, length)
        return 0

    def notify(target, address, text):
        note = TransferNotify("from mooncake", text)
        return engine.transfer_sync(target, start, address, 1, TransferOpcode.Write, note)

    commands = {
        "fill": lambda seed, offset, length: fill(int(seed), int(offset), int(length)),
        "crc": lambda offset, length: zlib.crc32(ctypes.string_at(start + int(offset), int(length))),
        "write": lambda target, offset, address, length: engine.transfer_sync_write(
            target, start + int(offset), int(address), int(length)
        ),
        "read": lambda target, offset, address, length: engine.transfer_sync_read(
            target, start + int(offset), int(address), int(length)
        ),
        "batch_write": lambda target, address, count, length: engine.batch_transfer_sync_write(
            target,
            [start + n * int(length) for n in range(int(count))],
            [int(address) + n * int(length) for n in range(int(count))],
            [int(length)] * int(count),
        ),
        "first": lambda target: engine.get_first_buffer_address(target),
        "probe": lambda target: engine.send_probe(target),
        "notify": lambda target, address, text: notify(target, int(address), text),
        "notifies": lambda: " ".join(f"{note.name}={note.msg}" for note in engine.get_notifies()) or "none",
    }
    print(f"\nREADY {name} {start} {SIZE}", flush=True)
    for line in sys.stdin:
        word, *arguments = line.split()
        if word == "quit":
            break
        print(f"\nANSWER {commands[word](*arguments)}", flush=True)
    engine.unregister_memory(start)


main()
