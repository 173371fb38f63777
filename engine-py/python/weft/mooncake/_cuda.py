"""Waiting for a CUDA stream through the driver, which is looked for when somebody asks."""

from __future__ import annotations

import ctypes


def _driver() -> ctypes.CDLL:
    # Loaded once, whoever asks; the loader counts.
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuStreamSynchronize.argtypes = [ctypes.c_void_p]
    return driver


def synchronize(stream: int) -> None:
    """Wait until everything on the stream has been done; 0 is the default stream.

    Raises OSError if there is no driver, RuntimeError with CUDA's number if the stream is broken.
    """
    result = _driver().cuStreamSynchronize(stream)
    if result != 0:
        raise RuntimeError(f"cuStreamSynchronize failed with CUDA error {result}")
