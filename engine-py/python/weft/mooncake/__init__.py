"""A drop-in for `mooncake.engine`: the same names, arguments, defaults and return values, on Weft.

Code that can be changed imports it instead::

    from weft.mooncake import TransferEngine

Code that cannot (SGLang, vLLM) is started with it in place of Mooncake's module, in its child processes, too::

    python -m weft.mooncake -m sglang.launch_server …
    PYTHONPATH=$(python -m weft.mooncake --path) vllm serve …

A program that controls its own imports calls `install()` before anything imports `mooncake.engine`. Other modules of an installed
Mooncake (`mooncake.store`, …) stay what they are.

`MOONCAKE_PROTOCOL` (auto, efa, tcp, rdma) and `MC_FORCE_TCP=1` win over the argument of `initialize`; `rdma` means `auto`: EFA where
both sides have it, TCP otherwise. Messages go to the logger `weft.mooncake`. Where Mooncake ends the process or returns success
for nothing, an error comes back: an unknown protocol, calls before `initialize`, an unknown batch or managed buffer, more bytes to be
copied than were given.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from .._weft import TransferEngine
from ._types import TransferNotify, TransferOpcode

# Mooncake's class has it, too.
TransferEngine.TransferOpcode = TransferOpcode

Read = TransferOpcode.Read
Write = TransferOpcode.Write

SUPPORT_CUDA: bool = False
"""Whether memory of NVIDIA GPUs can be registered."""
SUPPORT_EFA: bool = True
"""EFA is part of every build; whether this machine has it is found out when an engine opens."""
SUPPORT_HIP: bool = False
SUPPORT_MUSA: bool = False
SUPPORT_MNNVL: bool = False
SUPPORT_INTRA_NVLINK: bool = False

__all__ = [
    "SUPPORT_CUDA",
    "SUPPORT_EFA",
    "SUPPORT_HIP",
    "SUPPORT_INTRA_NVLINK",
    "SUPPORT_MNNVL",
    "SUPPORT_MUSA",
    "Read",
    "TransferEngine",
    "TransferNotify",
    "TransferOpcode",
    "Write",
    "install",
    "shim_path",
]


def shim_path() -> str:
    """The folder that holds a package `mooncake` whose `engine` is this module; first on the path, it goes before Mooncake's."""
    return str(Path(__file__).with_name("_shim"))


def install() -> None:
    """From now on `import mooncake.engine` in this process gives this module.

    Modules that have imported names from Mooncake's already keep them.
    """
    path = shim_path()
    if path not in sys.path:
        sys.path.insert(0, path)
    for name in ("mooncake", "mooncake.engine"):
        loaded = sys.modules.get(name)
        if loaded is not None and not (getattr(loaded, "__file__", None) or "").startswith(path):
            del sys.modules[name]
    importlib.invalidate_caches()
    importlib.import_module("mooncake.engine")
