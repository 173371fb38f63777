"""Where `weft.mooncake` differs from Mooncake on purpose: errors instead of crashes, and no success for nothing."""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import subprocess
import sys

import pytest

import weft.mooncake
from helpers import HERE, Process, array


@pytest.fixture
def node() -> weft.mooncake.TransferEngine:
    node = weft.mooncake.TransferEngine()
    assert node.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    return node


def initialize(protocol: str) -> tuple[int, str]:
    """The result, and the protocol in force."""
    engine = weft.mooncake.TransferEngine()
    result = engine.initialize("127.0.0.1", "P2PHANDSHAKE", protocol, "")
    return result, repr(engine)


def test_an_unknown_protocol_or_store_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    assert initialize("pigeon")[0] == -1
    assert "pigeon" in caplog.text
    assert weft.mooncake.TransferEngine().initialize("127.0.0.1", "ftp://nowhere", "tcp", "") == -1
    assert weft.mooncake.TransferEngine().initialize("", "P2PHANDSHAKE", "tcp", "") == -1


def test_the_environment_wins_and_rdma_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WEFT_PROTOCOL", "MOONCAKE_PROTOCOL", "MC_FORCE_TCP"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.INFO, "weft.mooncake"):
        assert initialize("rdma")[0] == 0
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1 and "auto" in warnings[0].getMessage()
        assert "protocol auto (builder)" in caplog.text
        caplog.clear()
        monkeypatch.setenv("MOONCAKE_PROTOCOL", "tcp")
        assert initialize("efa")[0] == 0
        assert "protocol tcp (environment variable MOONCAKE_PROTOCOL)" in caplog.text
        monkeypatch.delenv("MOONCAKE_PROTOCOL")
        caplog.clear()
        monkeypatch.setenv("MC_FORCE_TCP", "1")
        assert initialize("efa")[0] == 0
        assert "protocol tcp (environment variable MC_FORCE_TCP)" in caplog.text
        monkeypatch.setenv("MOONCAKE_PROTOCOL", "pigeon")
        assert initialize("tcp")[0] == -1


def test_calls_before_initialize_are_errors() -> None:
    engine = weft.mooncake.TransferEngine()
    for call in (engine.get_rpc_port, engine.get_notifies, lambda: engine.register_memory(4096, 4096)):
        with pytest.raises(RuntimeError, match="initialize"):
            call()


def test_unknown_batches_and_buffers_are_errors(node: weft.mooncake.TransferEngine) -> None:
    assert node.transfer_check_status(12345) == -1
    assert node.get_batch_transfer_status([12345]) == -1
    assert node.free_managed_buffer(12345, 1) == -3
    address = node.allocate_managed_buffer(64)
    assert node.free_managed_buffer(address, 64) == 0
    assert node.free_managed_buffer(address, 64) == -3
    assert node.unregister_memory(address) == -3


def test_addresses_that_are_not_there_are_errors(node: weft.mooncake.TransferEngine) -> None:
    memory, address = array(64, b"here")
    assert node.write_bytes_to_buffer(address, b"four", 5) == -1, "more than was given"
    assert node.write_bytes_to_buffer(4096, b"four", 4) == -1
    with pytest.raises(ValueError, match="0x1000"):
        node.read_bytes_from_buffer(4096, 4)
    with Process("mooncake_target.py", "weft.mooncake") as peer:
        assert node.transfer_sync_write(peer.hello["session"], 4096, peer.hello["address"], 64) == -1
        assert node.transfer_sync_read(peer.hello["session"], 4096, peer.hello["address"], 64) == -1
    assert memory.raw[:4] == b"here"


def test_a_batch_registers_all_or_nothing(node: weft.mooncake.TransferEngine) -> None:
    _, address = array(8192)
    assert node.register_memory(address + 4096, 100) == 0
    assert node.batch_register_memory([address, address + 4096], [100, 100]) == -7
    assert node.unregister_memory(address) == -3
    assert node.batch_register_memory([address], [100]) == 0


def test_a_transfer_without_cuda_on_a_cuda_stream_fails(node: weft.mooncake.TransferEngine) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert node.transfer_write_on_cuda("127.0.0.1:9", 4096, 4096, 8) == -1
        assert node.batch_transfer_read_on_cuda("127.0.0.1:9", [4096], [4096], [8], stream_ptr=0) == -1


def test_close_ends_an_engine(node: weft.mooncake.TransferEngine) -> None:
    assert "127.0.0.1:" in repr(node)
    node.close()
    assert "not initialized" in repr(node)
    assert node.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0


# ---- the shim ----------------------------------------------------------------------------------------------------------


def run(*arguments: str, path: str | None = None) -> str:
    before = os.environ.get("PYTHONPATH")
    env = {"PYTHONPATH": os.pathsep.join(filter(None, [path, before]))} if path else {}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **env}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = "from mooncake.engine import TransferEngine; print(TransferEngine.__module__)"


def test_unmodified_code_by_the_path() -> None:
    path = run("-m", "weft.mooncake", "--path").strip()
    assert run("-c", ASK, path=path).strip() == "weft.mooncake"


def test_unmodified_code_by_the_runner_and_in_its_children() -> None:
    out = run("-m", "weft.mooncake", str(HERE / "unmodified.py"), "one", "two")
    assert out.splitlines() == ["weft.mooncake ['one', 'two']", "weft.mooncake"]
    done = subprocess.run([sys.executable, "-m", "weft.mooncake"], capture_output=True, timeout=60)
    assert done.returncode == 2 and b"--path" in done.stderr


def test_install_in_a_running_process() -> None:
    assert run("-c", f"import weft.mooncake; weft.mooncake.install(); {ASK}").strip() == "weft.mooncake"


def test_the_rest_of_an_installed_mooncake_stays() -> None:
    from helpers import module

    module("mooncake.engine")
    path = weft.mooncake.shim_path()
    program = "import mooncake.mooncake_config as c, mooncake.engine as e; print(c.__file__); print(e.__file__)"
    theirs, ours = run("-c", program, path=path).splitlines()
    assert not theirs.startswith(path) and ours.startswith(path)
    assert run("-c", "from mooncake import BufferPool; print(BufferPool.__name__)", path=path).strip() == "BufferPool"
    assert importlib.import_module("mooncake.engine").__name__ == "mooncake.engine"
