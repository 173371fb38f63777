"""Every kind of memory that can be registered, and what is refused."""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

import weft
from helpers import pattern, skip


def moved(engine: weft.Engine, memory: Any, length: int) -> bytes:
    """The bytes of some memory, as a write from it carries them; then the memory is read into."""
    with weft.Engine(protocol="tcp") as other:
        landed = bytearray(length)
        there = other.register(landed, name="there")
        with engine.register(memory) as region:
            assert region.nbytes == length
            remote = engine.open(other.name)["there"]
            engine.write(region, remote)
            seen = bytes(landed)
            there.write(pattern(length, seed=9))
            engine.read(region, remote)
            assert region.read() == pattern(length, seed=9)
    return seen


def test_buffer_protocol(engine: weft.Engine) -> None:
    assert moved(engine, bytearray(b"bytearray"), 9) == b"bytearray"
    assert moved(engine, memoryview(bytearray(b"memoryview"))[3:9], 6) == b"oryvie"
    assert moved(engine, array.array("i", [1, 2, 3]), 12) == array.array("i", [1, 2, 3]).tobytes()
    with mmap.mmap(-1, 8192) as mapped:
        mapped[:4] = b"mmap"
        assert moved(engine, mapped, 8192)[:4] == b"mmap"
    memory = (ctypes.c_uint16 * 5)(1, 2, 3, 4, 5)
    wanted = bytes(memory)
    assert moved(engine, memory, 10) == wanted


def test_numpy(engine: weft.Engine) -> None:
    for dtype in ("u1", "f2", "f4", "c16", ">i4"):
        source = np.arange(24).astype(dtype).reshape(2, 3, 4)
        wanted = source.tobytes()
        assert moved(engine, source, source.nbytes) == wanted, dtype
    source = np.arange(12, dtype="i8").reshape(3, 4)
    rows = source[1:3].tobytes()
    assert moved(engine, source[1:3], 64) == rows
    columns = np.asfortranarray(np.arange(12, dtype="i8").reshape(3, 4))
    wanted = columns.tobytes(order="A")
    assert moved(engine, columns, 96) == wanted


class Interface:
    """An array of somebody else's, with any of the protocols."""

    def __init__(self, attribute: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, readonly: bool = False) -> None:
        self.held = np.arange(64, dtype="u1")
        value = {
            "data": (self.held.ctypes.data, readonly),
            "shape": shape,
            "strides": strides,
            "typestr": "<u2",
            "version": 3,
        }
        setattr(self, attribute, value)


@pytest.mark.parametrize("attribute", ["__cuda_array_interface__", "__array_interface__"])
def test_array_interfaces(engine: weft.Engine, attribute: str) -> None:
    whole = bytes(range(64))
    assert moved(engine, Interface(attribute, (4, 8), None), 64) == whole
    assert moved(engine, Interface(attribute, (2, 8), (16, 2)), 32) == whole[:32]
    # A dimension of one has no stride that matters.
    assert moved(engine, Interface(attribute, (1, 8), (999, 2)), 16) == whole[:16]
    for shape, strides in [((2, 8), (32, 2)), ((8,), (4,)), ((4, 8), (2, 8)), ((8,), (-2,))]:
        with pytest.raises(BufferError, match="contiguous"):
            engine.register(Interface(attribute, shape, strides))
    with pytest.raises(BufferError, match="read-only"):
        engine.register(Interface(attribute, (8,), None, readonly=True))


class OnlyDlpack:
    """A tensor that knows DLPack alone."""

    def __init__(self, held: np.ndarray[Any, Any]) -> None:
        self.held = held

    def __dlpack__(self, **options: Any) -> Any:
        return self.held.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.held.__dlpack_device__()


def test_dlpack(engine: weft.Engine) -> None:
    source = np.arange(20, dtype="f4").reshape(4, 5)
    assert moved(engine, OnlyDlpack(source.copy()), 80) == source.tobytes()
    assert moved(engine, OnlyDlpack(source.copy()[1:3]), 40) == source[1:3].tobytes()
    with pytest.raises(BufferError, match="contiguous"):
        engine.register(OnlyDlpack(source[:, 1:3]))
    with pytest.raises(BufferError, match="empty"):
        engine.register(OnlyDlpack(np.zeros((0, 4), dtype="f4")))


def test_torch(engine: weft.Engine) -> None:
    try:
        import torch
    except ImportError:
        skip("torch is not installed")
    for dtype in (torch.float16, torch.bfloat16, torch.int8, torch.float64):
        tensor = torch.arange(24).to(dtype).reshape(4, 6)
        wanted = tensor.view(torch.uint8).numpy().tobytes()
        assert moved(engine, tensor, len(wanted)) == wanted, dtype
    with pytest.raises(BufferError, match="contiguous"):
        engine.register(torch.zeros(4, 6).t())


def test_plain_addresses(engine: weft.Engine) -> None:
    memory = ctypes.create_string_buffer(b"plain address")
    address = weft.Address(ctypes.addressof(memory), 13, owner=memory)
    assert moved(engine, address, 13) == b"plain address"
    for wrong in (weft.Address(0, 10), weft.Address(ctypes.addressof(memory), 0), weft.Address(2**64 - 8, 16)):
        with pytest.raises(weft.RangeError):
            engine.register(wrong)


def test_what_is_no_memory_is_refused(engine: weft.Engine) -> None:
    with pytest.raises(BufferError, match="read-only"):
        engine.register(b"constant")
    frozen = np.zeros(8)
    frozen.flags.writeable = False
    with pytest.raises(BufferError, match="read-only"):
        engine.register(frozen)
    with pytest.raises(BufferError, match="contiguous"):
        engine.register(np.zeros((4, 4))[:, 1])
    with pytest.raises(BufferError, match="empty"):
        engine.register(bytearray())
    for wrong in (None, 5, "text", object(), [1, 2]):
        with pytest.raises(TypeError, match="no memory that can be registered"):
            engine.register(wrong)
