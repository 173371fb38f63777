"""The module `weft` between two processes."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

import weft
from helpers import Process, pattern


def test_write_and_read_arrive_whole_and_touch_nothing_else(engine: weft.Engine, target: Process) -> None:
    data = pattern(5000)
    memory = bytearray(data)
    local = engine.register(memory, access="")
    remote = engine.open(target.hello["name"])["kv"]
    engine.write(local, remote[100:5100])
    assert bytes.fromhex(target.ask(what="show", at=99, length=5002)) == b"\0" + data + b"\0"
    other = pattern(3000, seed=1)
    target.ask(what="fill", at=7000, data=other.hex())
    engine.read(local[1000:4000], remote[7000:10000])
    assert memory == data[:1000] + other + data[4000:]


def test_shapes_pair_up_by_length(engine: weft.Engine, target: Process) -> None:
    source = np.frombuffer(pattern(4096), dtype=np.uint8).copy()
    local = engine.register(source, access="")
    remote = engine.open(target.hello["name"])["kv"]
    batch = engine.batch()
    batch.write(local.strided(0, 256, 512, 8), remote.pages([4096, 0, 8192, 12288], 512))
    batch.write(local.pages([3072, 1024], 128), remote.scatter([(20000, 100), (30000, 156)]))
    assert len(batch) == 2 and bool(batch)
    transfer = batch.submit()
    transfer.wait()
    assert len(batch) == 0 and len(transfer) == 2
    assert transfer.done() and transfer.status(1) == "done" and transfer.exception() is None

    def seen(at: int, length: int) -> bytes:
        return bytes.fromhex(target.ask(what="show", at=at, length=length))

    strided = b"".join(source[i * 512 : i * 512 + 256].tobytes() for i in range(8))
    for index, at in enumerate([4096, 0, 8192, 12288]):
        assert seen(at, 512) == strided[index * 512 : (index + 1) * 512], at
    paged = source[3072:3200].tobytes() + source[1024:1152].tobytes()
    assert seen(20000, 100) + seen(30000, 156) == paged


def test_absolute_addresses(engine: weft.Engine, target: Process) -> None:
    segment = engine.open(target.hello["name"])
    buffer = segment["kv"]
    assert [b.name for b in segment.buffers] == ["kv"] and len(buffer) == buffer.nbytes == 1 << 20
    local = engine.register(bytearray(b"absolute"))
    engine.write(local, segment.at(buffer.address + 5, 8))
    assert bytes.fromhex(target.ask(what="show", at=5, length=8)) == b"absolute"
    engine.write(local, segment.scatter([(buffer.address + 64, 4), (buffer.address + 32, 4)]))
    assert bytes.fromhex(target.ask(what="show", at=32, length=36)) == b"lute" + bytes(28) + b"abso"


def test_notifications_and_probe(engine: weft.Engine, target: Process) -> None:
    segment = engine.open(target.hello["name"])
    segment.notify(b"page 2")
    assert target.ask(what="note") == [engine.name, b"page 2".hex()]
    assert 0 < segment.probe() < 20
    segment.warm_up()
    assert segment.path.startswith("tcp/")
    assert engine.notification(timeout=0.01) is None


def test_a_peer_that_takes_its_memory_back_refuses(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(b"too late"))
    segment = engine.open(target.hello["name"])
    remote = segment["kv"]
    target.ask(what="unregister")
    with pytest.raises(weft.Error) as caught:
        engine.write(local, remote[0:8], timeout=5)
    assert target.hello["name"] in str(caught.value)
    assert bytes.fromhex(target.ask(what="show", at=0, length=8)) == bytes(8)
    target.ask(what="register")
    segment.refresh()
    engine.write(local, segment["kv"][0:8])
    assert bytes.fromhex(target.ask(what="show", at=0, length=8)) == b"too late"


def test_a_peer_that_dies_is_named_and_nothing_hangs(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(64))
    remote = engine.open(target.hello["name"])["kv"]
    target.kill()
    transfer = engine.start_write(local, remote[0:64], timeout=1.5)
    with pytest.raises(weft.Error) as caught:
        transfer.wait(timeout=20)
    assert target.hello["name"] in str(caught.value)
    assert isinstance(transfer.exception(0), weft.Error) and transfer.status(0) == "failed"


def test_batch_errors_count(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(64))
    remote = engine.open(target.hello["name"])["kv"]
    target.ask(what="unregister")
    batch = engine.batch(timeout=5)
    for _ in range(3):
        batch.write(local, remote[0:64])
    with pytest.raises(weft.Error) as caught:
        batch.submit().wait()
    assert (caught.value.failed, caught.value.total, caught.value.index) == (3, 3, 0)


def test_what_cannot_be_is_refused_before_anything_moves(engine: weft.Engine, target: Process) -> None:
    local = engine.register(bytearray(64))
    segment = engine.open(target.hello["name"])
    remote = segment["kv"]
    with pytest.raises(weft.RangeError, match="10"):
        engine.write(local[0:10], remote[0:11])
    with pytest.raises(weft.RangeError, match="outside"):
        local.range(60, 5)
    with pytest.raises(weft.RangeError, match="no registered buffer"):
        engine.write(local, segment.at(1 << 40, 64))
    with pytest.raises(weft.RangeError):
        local.strided(0, 2**63, 2**63, 2**63)
    with pytest.raises(TypeError, match="local side"):
        engine.write(remote, local)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="remote side"):
        engine.write(local, local)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strided"):
        local[0:10:2]
    with pytest.raises(weft.PeerError, match="nothing"):
        segment["nothing"]
    assert len(local[10:]) == 54 if hasattr(local[10:], "__len__") else local[10:].nbytes == 54
    assert local[-4:].nbytes == 4 and local[100:200].nbytes == 0


def test_settings_that_make_no_sense_are_said() -> None:
    with pytest.raises(weft.SettingError, match="pigeon"):
        weft.Engine(protocol="pigeon")
    with pytest.raises(weft.SettingError, match="listen"):
        weft.Engine(listen="nonsense")
    with pytest.raises(weft.UnavailableError, match="no-such-provider"):
        weft.Engine(protocol="efa", provider="no-such-provider")
    with pytest.raises(ValueError):
        weft.Engine(secret="short")
    with weft.Engine(protocol="tcp") as engine:
        assert (engine.protocol, engine.protocol_source) == ("tcp", "builder")
        with pytest.raises(weft.SettingError, match="access"):
            engine.register(bytearray(8), access="x")
        with pytest.raises(weft.UnavailableError):
            engine.fabric  # noqa: B018


def test_secrets_must_agree() -> None:
    secret = "sixteen bytes or more"
    with weft.Engine(protocol="tcp", secret=secret) as one, weft.Engine(protocol="tcp", secret=secret.encode()) as two:
        one.open(two.name).probe()
        with weft.Engine(protocol="tcp", secret="another one of sixteen") as other:
            with pytest.raises(weft.Error):
                other.open(two.name, timeout=2)


def test_a_closed_engine_says_so(engine: weft.Engine) -> None:
    region = engine.register(bytearray(8))
    engine.close()
    engine.close()
    assert engine.closed and "closed" in repr(engine)
    for call in (engine.batch, lambda: engine.open("127.0.0.1:1"), lambda: engine.register(bytearray(8))):
        with pytest.raises(weft.ClosedError):
            call()
    region.unregister()


def test_regions_end_with_their_block_and_give_memory_back(engine: weft.Engine) -> None:
    memory = bytearray(64)
    with engine.register(memory, name="short", access="r") as region:
        assert (region.name, region.nbytes, region.access, region.registered) == ("short", 64, "r", True)
        assert region.memory is memory
        with pytest.raises(BufferError):
            memory.append(0)
    assert not region.registered and "unregistered" in repr(region)
    memory.append(0)
    with pytest.raises(weft.RefusedError, match="short"):
        region[0:8]
    region.unregister()


def test_registered_memory_outlives_its_name(engine: weft.Engine, target: Process) -> None:
    class Owner(bytearray):
        pass

    memory = Owner(b"kept")
    alive = weakref.ref(memory)
    region = engine.register(memory)
    del memory
    gc.collect()
    assert alive() is not None
    engine.write(region, engine.open(target.hello["name"])["kv"][0:4])
    assert bytes.fromhex(target.ask(what="show", at=0, length=4)) == b"kept"
    region.unregister()
    del region
    gc.collect()
    assert alive() is None


def test_copies_in_and_out_of_a_region(engine: weft.Engine) -> None:
    region = engine.register(bytearray(64))
    region.write(b"hello", 10)
    assert region.read(10, 5) == b"hello" and len(region.read()) == 64
    with pytest.raises(weft.RangeError):
        region.write(b"hello", 60)
    with pytest.raises(weft.RangeError):
        region.read(60, 5)


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(weft.TimeoutError, TimeoutError)
    assert issubclass(weft.PeerError, ConnectionError)
    assert issubclass(weft.RefusedError, PermissionError)
    assert issubclass(weft.SettingError, ValueError)
    assert all(issubclass(getattr(weft, name), weft.Error) for name in weft.__all__ if name.endswith("Error"))


def test_writes_with_a_tag_are_counted_by_the_receiver(engine: weft.Engine) -> None:
    with weft.Engine(protocol="tcp") as other:
        other.register(bytearray(64), name="kv")
        local = engine.register(bytearray(b"tagged"))
        remote = engine.open(other.name)["kv"]
        assert other.arrivals(engine.name, 7) == 0
        batch = engine.batch()
        for _ in range(3):
            batch.write(local, remote[0:6], tag=7)
        batch.write(local, remote[0:6])
        batch.notify_on_completion(b"all there")
        batch.submit().wait()
        assert other.arrivals(engine.name, 7, at_least=3, timeout=20) == 3
        assert other.arrivals(engine.name, 8) == 0
        note = other.notification(timeout=20)
        assert note is not None and (note.sender, note.payload) == (engine.name, b"all there")
        with pytest.raises(weft.TimeoutError, match="3 of 4"):
            other.arrivals(engine.name, 7, at_least=4, timeout=0.05)


def test_registering_several_or_none(engine: weft.Engine) -> None:
    regions = engine.register_many([bytearray(8), np.zeros(4, "f4")], ["a", "b"], access="r")
    assert [(r.name, r.nbytes, r.access) for r in regions] == [("a", 8, "r"), ("b", 16, "r")]
    before = engine.statistics()["regions"]
    with pytest.raises(BufferError):
        engine.register_many([bytearray(8), b"constant"])
    with pytest.raises(weft.SettingError):
        engine.register_many([bytearray(8)], [])
    assert engine.statistics()["regions"] == before == 2


def test_statistics_and_settings(engine: weft.Engine, target: Process) -> None:
    engine.write(engine.register(bytearray(4096)), engine.open(target.hello["name"])["kv"][0:4096])
    statistics = engine.statistics()
    assert statistics["name"] == engine.name and statistics["registered_bytes"] == 4096
    (peer,) = statistics["peers"]
    assert peer["name"] == target.hello["name"] and "4096" in str(peer)
    by_name = {entry["name"]: entry for entry in engine.settings()}
    assert by_name["protocol"] == {"name": "protocol", "value": "tcp", "source": "builder"}


def test_a_configuration_file(tmp_path: Path) -> None:
    path = tmp_path / "weft.toml"
    path.write_text('protocol = "tcp"\ntimeout_seconds = 7\n')
    with weft.Engine(config=path) as engine:
        by_name = {entry["name"]: entry for entry in engine.settings()}
        assert (engine.protocol, engine.protocol_source) == ("tcp", "configuration file")
        assert by_name["timeout_seconds"]["value"] == "7"
