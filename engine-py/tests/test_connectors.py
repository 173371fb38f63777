"""SGLang's and vLLM's own connector files, unmodified, on both modules: they initialise, register and transfer.

`cargo xtask wheel` takes the files out of the packages on PyPI and says in WEFT_CONNECTORS where they are. What they import of their own
packages and of torch is replaced by stand-ins; what they do with the transfer engine is theirs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers import Process, array, pattern, skip
from stand_ins import loaded


def connector(relative: str) -> Path:
    folder = os.environ.get("WEFT_CONNECTORS", "")
    path = Path(folder, relative)
    if not folder or not path.is_file():
        skip(f"{relative} is not there; `cargo xtask wheel` provides it")
    return path


@pytest.fixture
def mooncake(api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`mooncake.engine`, as the connectors import it, is the module under test."""
    package = sys.modules.get("mooncake") or SimpleNamespace(engine=api)
    monkeypatch.setitem(sys.modules, "mooncake", package)
    monkeypatch.setitem(sys.modules, "mooncake.engine", api)
    yield api


def setting(value: Any) -> Any:
    return SimpleNamespace(get=lambda: value)


class NetworkAddress:
    """As SGLang's, for IPv4."""

    def __init__(self, host: str, port: int) -> None:
        self.text = f"{host}:{port}"

    def to_host_port_str(self) -> str:
        return self.text


def test_sglang(mooncake: Any, peer: Process) -> None:
    path = connector("sglang/srt/distributed/device_communicators/mooncake_transfer_engine.py")
    known = {
        "sglang.srt.environ": {
            "envs": SimpleNamespace(
                ENABLE_ASCEND_TRANSFER_WITH_MOONCAKE=setting(False),
                MOONCAKE_PROTOCOL=setting("tcp"),
                SGLANG_DISAGGREGATION_ENGINE_INIT_TIMEOUT=setting(60),
            )
        },
        "sglang.srt.utils.common": {"run_with_deadline": lambda call, timeout_s, what: call()},
        "sglang.srt.utils.network": {"NetworkAddress": NetworkAddress},
    }
    with loaded(path, "sglang_connector", {"sglang"}, known) as module:
        engine = module.init_mooncake_transfer_engine("127.0.0.1", gpu_id=0, ib_device=None)
        assert module.get_mooncake_transfer_engine() is engine
        assert engine.get_session_id().startswith("127.0.0.1:")
        data = pattern(64 * 4096)
        memory, here = array(len(data), data)
        half = len(data) // 2
        assert engine.batch_register([here, here + half], [half, half]) == 0
        session, there = peer.hello["session"], peer.hello["address"]
        pages = [(i * 4096, 4096) for i in range(64)]
        sent = engine.batch_transfer_sync(
            session, [here + a for a, _ in pages], [there + a for a, _ in reversed(pages)], [n for _, n in pages]
        )
        assert sent == 0
        landed = bytes.fromhex(peer.ask(what="show", at=0, length=len(data)))
        assert landed == b"".join(data[a : a + n] for a, n in reversed(pages))
        assert engine.transfer_sync(session, here, there, 4096) == 0
        assert engine.send_probe(session) == 0
        assert engine.get_engine() is not None
        assert engine.batch_transfer_sync("127.0.0.1:9", [here], [there], [8]) < 0
        assert engine.batch_deregister([here, here + half]) == 0
        engine.register(here, len(data))
        engine.deregister(here)
        with pytest.raises(RuntimeError):
            engine.deregister(here)
        assert memory.raw == data


def test_vllm(mooncake: Any, peer: Process) -> None:
    path = connector("vllm/distributed/kv_transfer/kv_connector/v1/mooncake/mooncake_connector.py")
    roots = {"vllm", "torch", "zmq", "msgspec", "huggingface_hub", "numpy"} - {"numpy"}
    known = {"vllm.utils.network_utils": {"get_ip": lambda: "127.0.0.1"}}
    with loaded(path, "vllm_connector", roots, known) as module:
        # Its constructor as far as the engine is concerned; the rest sets up threads and queues of vLLM's.
        worker = object.__new__(module.MooncakeConnectorWorker)
        worker.shutdown = lambda: None
        assert module.TransferEngine is mooncake.TransferEngine
        worker.engine = module.TransferEngine()
        assert worker.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
        assert worker.engine.get_rpc_port() > 0
        data = pattern(32 * 16384)
        memory, here = array(len(data), data)
        half = len(data) // 2
        worker.seen_base_addresses, worker._kv_data_lens = [here, here + half], [half, half]
        worker._kv_unregistered = True
        recorded: list[Any] = []
        worker.xfer_stats = SimpleNamespace(
            record_transfer=lambda **what: recorded.append(what), record_failed_transfer=lambda: recorded.append("failed")
        )
        worker.restore_kv_caches()
        session, there = peer.hello["session"], peer.hello["address"]
        offsets = [i * 16384 for i in range(32)]
        sent = worker._send_blocks(
            session, [here + o for o in offsets], [there + o for o in offsets[::-1]], [16384] * 32
        )
        assert sent == 0 and recorded[0]["total_bytes"] == len(data) and recorded[0]["num_descs"] == 32
        landed = bytes.fromhex(peer.ask(what="show", at=0, length=len(data)))
        assert landed == b"".join(data[o : o + 16384] for o in offsets[::-1])
        assert worker._send_blocks("127.0.0.1:9", [here], [there], [8]) != 0 and recorded[1] == "failed"
        worker.unregister_kv_caches()
        worker._kv_unregistered = False
        with pytest.raises(RuntimeError):
            worker.unregister_kv_caches()
        assert ctypes.string_at(here, len(data)) == memory.raw == data
