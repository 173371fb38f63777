"""Mooncake's API: the same tests, with the same assertions, on `weft.mooncake` and on the real `mooncake.engine`.

What differs by intention is in test_mooncake_better.py.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import pytest

from helpers import Process, array, pattern

NOBODY = "127.0.0.1:9"
"""Where nobody listens."""


def shown(peer: Process, at: int, length: int) -> bytes:
    return bytes.fromhex(peer.ask(what="show", at=at, length=length))


def local(node: Any, length: int, fill: bytes = b"") -> tuple[Any, int]:
    memory, address = array(length, fill)
    assert node.register_memory(address, length) == 0
    return memory, address


def test_a_port_in_mooncakes_range(node: Any) -> None:
    assert 15000 <= node.get_rpc_port() <= 17000
    assert node.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "again is nothing"


def test_rdma_is_accepted_where_there_is_none(api: Any) -> None:
    assert api.TransferEngine().initialize("127.0.0.1", "P2PHANDSHAKE", "rdma", "") == 0


def test_initialize_ext(api: Any) -> None:
    engine = api.TransferEngine()
    assert engine.initialize_ext("127.0.0.1", "P2PHANDSHAKE", "tcp", "", "p2p") == 0
    assert engine.get_rpc_port() > 0


@pytest.mark.parametrize("length", [1, 63, 4096, 65537, 3 << 20])
def test_sync_write_and_read(node: Any, peer: Process, length: int) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    data = pattern(length)
    memory, here = local(node, length, data)
    assert node.transfer_sync_write(session, here, there + 5, length) == 0
    assert shown(peer, 4, length + 2) == b"\0" + data + b"\0"
    ctypes.memset(here, 0, length)
    assert node.transfer_sync_read(session, here, there + 5, length) == 0
    assert memory.raw == data


def test_keywords_and_hints(node: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    _, here = local(node, 64, b"by name")
    single = {"target_hostname": session, "buffer": here, "peer_buffer_address": there, "length": 7}
    assert node.transfer_sync_write(**single, transport_hint="tcp") == 0
    assert node.transfer_sync_read(**single) == 0
    many = {
        "target_hostname": session,
        "buffers": [here, here + 2],
        "peer_buffer_addresses": [there + 10, there + 20],
        "lengths": [7, 5],
    }
    assert node.batch_transfer_sync_write(**many) == 0
    assert shown(peer, 0, 25) == b"by name\0\0\0by name\0\0\0 name"
    assert node.batch_transfer_sync_read(**many, transport_hint="") == 0


@pytest.mark.parametrize("count", [1, 16, 128])
def test_batches(node: Any, api: Any, peer: Process, count: int) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    size = 4096
    data = pattern(count * size)
    memory, here = local(node, count * size, data)
    # Every other block, from the back.
    blocks = list(range(count))[::-1]
    buffers = [here + i * size for i in blocks]
    peers = [there + i * 2 * size for i in blocks]
    lengths = [size] * count
    assert node.batch_transfer_sync_write(session, buffers, peers, lengths) == 0
    landed = shown(peer, 0, 2 * count * size)
    for i in range(count):
        assert landed[2 * i * size : (2 * i + 1) * size] == data[i * size : (i + 1) * size], i
        assert landed[(2 * i + 1) * size : (2 * i + 2) * size] == bytes(size), i
    ctypes.memset(here, 0, count * size)
    assert node.batch_transfer_sync(session, buffers, peers, lengths, api.TransferOpcode.Read) == 0
    assert memory.raw == data
    assert node.batch_transfer_sync_write(session, [], [], []) == 0


def test_async_batches_and_their_status(node: Any, api: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    data = pattern(64 * 1024)
    memory, here = local(node, len(data), data)
    parts = [(i * 4096, 4096) for i in range(16)]
    arguments = (session, [here + a for a, _ in parts], [there + a for a, _ in parts], [n for _, n in parts])
    first = node.batch_transfer_async_write(*arguments)
    second = node.batch_transfer_async(*arguments, api.TransferOpcode.Write)
    assert first and second and first != second
    assert node.get_batch_transfer_status([first, second]) == 0
    assert shown(peer, 0, len(data)) == data
    ctypes.memset(here, 0, len(data))
    assert node.get_batch_transfer_status([node.batch_transfer_async_read(*arguments)]) == 0
    assert memory.raw == data
    assert node.get_batch_transfer_status([]) == 0


def test_submitted_writes_are_polled(node: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    _, here = local(node, 4096, pattern(4096))
    batch = node.transfer_submit_write(session, here, there, 4096)
    assert batch
    end = time.monotonic() + 20
    while (status := node.transfer_check_status(batch)) == 0 and time.monotonic() < end:
        time.sleep(0.001)
    assert status == 1
    assert shown(peer, 0, 4096) == pattern(4096)


def test_opcodes(node: Any, api: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    opcode = api.TransferOpcode
    assert (int(opcode.Read), int(opcode.Write)) == (0, 1)
    assert (opcode.Read.name, opcode.Write.value) == ("Read", 1)
    assert opcode(1) == opcode.Write and opcode.Read != 0 and list(opcode.__members__) == ["Read", "Write"]
    assert repr(opcode.Read) == "<TransferOpcode.Read: 0>"
    _, here = local(node, 64, b"opcode")
    assert node.transfer_sync(session, here, there, 6, opcode.Write) == 0
    assert node.transfer_sync(session, here + 32, there, 6, opcode.Read) == 0
    assert ctypes.string_at(here + 32, 6) == b"opcode"
    with pytest.raises(TypeError):
        node.transfer_sync(session, here, there, 6, 1)


def test_notifications(node: Any, api: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    _, here = local(node, 64, b"note")
    notify = api.TransferNotify("name", "message with ü and \"quotes\"")
    assert (notify.name, notify.msg) == ("name", "message with ü and \"quotes\"")
    empty = api.TransferNotify()
    assert (empty.name, empty.msg) == ("", "")
    opcode = api.TransferOpcode.Write
    assert node.transfer_sync(session, here, there, 4, opcode, notify) == 0
    assert node.batch_transfer_sync(session, [here], [there], [4], opcode, notify=api.TransferNotify("2", "b")) == 0
    assert node.transfer_sync(session, here, there, 4, opcode, None) == 0
    notes: list[list[str]] = []
    end = time.monotonic() + 20
    while len(notes) < 2 and time.monotonic() < end:
        notes += peer.ask(what="notes")
        time.sleep(0.01)
    assert notes == [["name", "message with ü and \"quotes\""], ["2", "b"]]
    assert node.get_notifies() == []


def test_registration(node: Any) -> None:
    _, address = array(8192)
    assert node.register_memory(address, 4096) == 0
    assert node.register_memory(address, 4096) == -7, "overlaps"
    assert node.register_memory(address + 100, 10) == -7, "overlaps"
    assert node.register_memory(address, 0) == -1
    assert node.register_memory(address + 4096, 4096, "cpu:0") == 0
    assert node.unregister_memory(address) == 0
    assert node.unregister_memory(address) == -3, "not registered"
    assert node.unregister_memory(address + 4096) == 0
    assert node.unregister_memory(12345) == -3
    assert node.batch_register_memory([address, address + 4096], [4096, 4096], "*") == 0
    assert node.batch_register_memory([address, address + 4096], [4096]) == -1
    assert node.batch_unregister_memory([address, address + 4096]) == 0
    assert node.batch_unregister_memory([address, address + 4096]) == -3
    assert node.register_memory(buffer_addr=address, capacity=4096, location="*") == 0


def test_managed_buffers(node: Any, peer: Process) -> None:
    address = node.allocate_managed_buffer(8192)
    assert address > 0
    assert node.write_bytes_to_buffer(address, b"managed", 7) == 0
    assert node.read_bytes_from_buffer(address, 7) == b"managed"
    assert node.write_bytes_to_buffer(address + 100, "text", 4) == 0
    assert node.read_bytes_from_buffer(address + 100, 4) == b"text"
    assert node.write_bytes_to_buffer(address, b"man", 2) == 0
    assert node.read_bytes_from_buffer(address, 0) == b""
    assert node.transfer_sync_write(peer.hello["session"], address, peer.hello["address"], 7) == 0
    assert shown(peer, 0, 7) == b"managed"
    assert node.free_managed_buffer(address, 8192) == 0
    assert node.allocate_managed_buffer(1 << 40) == 0, "no such memory"


def test_the_first_buffer_of_a_peer(node: Any, peer: Process) -> None:
    assert node.get_first_buffer_address(peer.hello["session"]) == peer.hello["address"]
    assert node.get_first_buffer_address(NOBODY) == 0


def test_failures_are_minus_one_or_zero(node: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    _, here = local(node, 64)
    beyond = there + peer.hello["length"]
    assert node.transfer_sync_write(session, here, beyond + (1 << 30), 64) == -1
    assert node.transfer_sync_write(session, here, beyond - 32, 64) == -1, "half inside"
    assert node.transfer_sync_read(NOBODY, here, there, 64) == -1
    assert node.transfer_sync_read("nowhere", here, there, 64) == -1
    assert node.batch_transfer_sync_write(session, [here, here], [there, there], [8]) == -1
    assert node.batch_transfer_sync_write(NOBODY, [here], [there], [8]) == -1
    assert node.batch_transfer_async_write(NOBODY, [here], [there], [8]) == 0
    assert node.transfer_submit_write(NOBODY, here, there, 8) == 0
    assert node.transfer_sync_write(session, here, there, 64) == 0, "still works"
    assert shown(peer, peer.hello["length"] - 32, 32) == bytes(32)


def test_empty_transfers_and_unregistered_memory(node: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    _, here = array(64, b"unregistered")
    assert node.transfer_sync_write(session, here, there, 12) == 0
    assert shown(peer, 0, 12) == b"unregistered"
    assert node.transfer_sync_write(session, here, there, 0) == 0


def test_probes(node: Any, peer: Process) -> None:
    assert node.send_probe(peer.hello["session"]) == 0
    assert node.send_probe(NOBODY) == -102
    assert node.send_probe(peer_server_name="nowhere") == -101
    assert node.warmup_efa_segment(segment_name=peer.hello["session"]) == 0


def test_wrong_types(node: Any, peer: Process) -> None:
    session, there = peer.hello["session"], peer.hello["address"]
    _, here = local(node, 64)
    for wrong in ("x", None, -1, 1.5, 1 << 64):
        with pytest.raises(TypeError):
            node.transfer_sync_write(session, here, there, wrong)
        with pytest.raises(TypeError):
            node.batch_transfer_sync_write(session, [here], [wrong], [8])
    with pytest.raises(TypeError):
        node.transfer_sync_write(session, here, there)
    with pytest.raises(TypeError):
        node.allocate_managed_buffer(-1)


def test_topology_is_json(node: Any) -> None:
    import json

    matrix = json.loads(node.get_local_topology())
    assert all(len(lists) == 2 for lists in matrix.values())
    assert json.loads(node.get_local_topology(device_name="")) == matrix


def test_inner_engine_and_flags(node: Any, api: Any) -> None:
    assert node.get_engine() is not None
    assert isinstance(node.get_engine_ptr(), int) and node.get_engine_ptr() != 0
    for flag in ("CUDA", "EFA", "HIP", "INTRA_NVLINK", "MNNVL", "MUSA"):
        assert isinstance(getattr(api, f"SUPPORT_{flag}"), bool), flag


def test_threads(node: Any, peer: Process) -> None:
    from concurrent.futures import ThreadPoolExecutor

    session, there = peer.hello["session"], peer.hello["address"]
    data = pattern(1 << 20)
    _, here = local(node, len(data), data)
    size = len(data) // 16

    def write(i: int) -> int:
        return node.batch_transfer_sync_write(
            session, [here + i * size, here + i * size + 1000], [there + i * size, there + i * size + 1000], [1000, size - 1000]
        )

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(16))) == [0] * 16
    assert shown(peer, 0, len(data)) == data


def test_signatures_are_mooncakes() -> None:
    """Every method of Mooncake's class is here, and takes its keywords; from the real one, where it is installed."""
    import inspect
    import re

    from helpers import module

    theirs = module("mooncake.engine")
    import weft.mooncake as ours

    for name in dir(theirs.TransferEngine):
        if name.startswith("_"):
            continue
        if not callable(getattr(theirs.TransferEngine, name)) or name == "TransferOpcode":
            assert hasattr(ours.TransferEngine, name), name
            continue
        documented = getattr(theirs.TransferEngine, name).__doc__ or ""
        first = next(line for line in documented.splitlines() if line.strip())
        arguments = re.findall(r"(\w+): [\w.\[\]]+(?: = ([^,)]+))?", first)
        wanted = [(n, d) for n, d in arguments if n != "self"]
        signature = inspect.signature(getattr(ours.TransferEngine, name))
        ours_by_name = list(signature.parameters.values())[1:]
        assert len(ours_by_name) == len(wanted), (name, first)
        for (their_name, default), parameter in zip(wanted, ours_by_name):
            if not re.fullmatch(r"arg\d+", their_name):
                assert parameter.name == their_name, (name, their_name)
            assert (parameter.default is inspect.Parameter.empty) == (default == ""), (name, their_name)
    for name in dir(theirs):
        if name.startswith("SUPPORT_") or name in ("TransferEngine", "TransferNotify", "TransferOpcode", "Read", "Write"):
            assert hasattr(ours, name), name
