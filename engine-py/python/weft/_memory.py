"""Where an object's bytes lie: address, length, and what keeps them there.

Asked in this order: the object says so itself (`Address`), torch's `data_ptr`, `__cuda_array_interface__`, the buffer protocol,
`__array_interface__`, DLPack. Only contiguous and writable memory can be registered, because peers and reads write to it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from math import prod
from typing import Any


@dataclass(frozen=True)
class Address:
    """Plain memory: an address and a length in bytes, for what no protocol describes.

    The memory has to stay where it is until its region has been unregistered; `owner`, if given, is kept alive as long.
    """

    address: int
    nbytes: int
    owner: Any = field(default=None, repr=False, compare=False)


def locate(memory: Any) -> tuple[int, int, Any]:
    """Address, length in bytes, and an object that keeps both true while it lives."""
    if isinstance(memory, Address):
        return memory.address, memory.nbytes, memory
    # torch.Tensor, without importing torch. Its buffer protocol and NumPy view do not know device memory.
    if hasattr(memory, "data_ptr") and hasattr(memory, "is_contiguous"):
        return _tensor(memory)
    if hasattr(memory, "__cuda_array_interface__"):
        return _interface(memory.__cuda_array_interface__, memory)
    try:
        return _buffer(memory)
    except TypeError as error:
        if "writable" in str(error) or "read-only" in str(error):
            raise BufferError(_READ_ONLY) from None
        if hasattr(memory, "__array_interface__"):
            return _interface(memory.__array_interface__, memory)
        if hasattr(memory, "__dlpack__"):
            return _dlpack(memory)
    kind = type(memory).__name__
    raise TypeError(
        f"{kind} is no memory that can be registered; what can is a writable buffer (bytearray, mmap, NumPy array), a tensor, "
        "an object with __cuda_array_interface__ or __dlpack__, or weft.Address(address, nbytes)"
    )


_READ_ONLY = "the memory is read-only, but reads and peers write to it; register a writable copy"
_STRIDED = "the memory is not contiguous; register the array that it is a view of, or a contiguous copy"


def _buffer(memory: Any) -> tuple[int, int, Any]:
    view = memoryview(memory)
    if view.readonly:
        raise BufferError(_READ_ONLY)
    if not view.c_contiguous and not view.f_contiguous:
        raise BufferError(_STRIDED)
    if view.nbytes == 0:
        raise BufferError("the memory is empty")
    if not view.c_contiguous:
        # The same bytes in the other order of indices.
        view = memoryview(memory.T)
    # Holds the buffer exported, so that a bytearray cannot be resized meanwhile.
    held = (ctypes.c_char * view.nbytes).from_buffer(view)
    return ctypes.addressof(held), view.nbytes, (held, memory)


def _tensor(tensor: Any) -> tuple[int, int, Any]:
    if not tensor.is_contiguous():
        raise BufferError(_STRIDED)
    length = tensor.numel() * tensor.element_size()
    if length == 0:
        raise BufferError("the tensor is empty")
    return tensor.data_ptr(), length, tensor


def _interface(interface: dict[str, Any], owner: Any) -> tuple[int, int, Any]:
    address, readonly = interface["data"]
    if readonly:
        raise BufferError(_READ_ONLY)
    # "<f2": byte order, kind, bytes of an element.
    shape, size = tuple(interface["shape"]), int(interface["typestr"][2:])
    if not _dense(shape, interface.get("strides"), size):
        raise BufferError(_STRIDED)
    return address, prod(shape) * size, owner


def _dense(shape: tuple[int, ...], strides: tuple[int, ...] | None, size: int) -> bool:
    """Whether elements of `size` bytes follow each other in C order. No strides mean that they do."""
    if strides is None:
        return True
    expected = size
    for length, stride in zip(reversed(shape), reversed(strides)):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


# DLPack's C structs, as its specification lays them out.
class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _dlpack(memory: Any) -> tuple[int, int, Any]:
    # Never renamed to "used_dltensor", so the capsule's own destructor gives the tensor back when we drop it.
    capsule = memory.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    size = (tensor.bits * tensor.lanes + 7) // 8
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] * size for i in range(tensor.ndim)) if tensor.strides else None
    length = prod(shape) * size
    if not tensor.data or length == 0:
        raise BufferError("the tensor is empty")
    if not _dense(shape, strides, size):
        raise BufferError(_STRIDED)
    return tensor.data + tensor.byte_offset, length, (capsule, memory)
