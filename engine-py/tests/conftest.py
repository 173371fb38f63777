"""Fixtures: an engine, and processes to talk to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import weft
from helpers import MODULES, Process, module

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("GLOG_minloglevel", "3")
os.environ.setdefault("MC_LOG_LEVEL", "ERROR")


@pytest.fixture
def engine() -> Iterator[weft.Engine]:
    with weft.Engine(protocol="tcp") as engine:
        yield engine


@pytest.fixture
def target() -> Iterator[Process]:
    with Process("weft_target.py") as process:
        yield process


@pytest.fixture(params=MODULES)
def api(request: pytest.FixtureRequest) -> Any:
    """Both modules, one after the other, under the same assertions."""
    return module(request.param)


@pytest.fixture
def node(api: Any) -> Any:
    """An initialized TransferEngine of either module."""
    engine = api.TransferEngine()
    assert engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0
    return engine


@pytest.fixture
def peer(api: Any) -> Iterator[Process]:
    """A process with the same module."""
    name = "weft.mooncake" if api.__name__.startswith("weft") else "mooncake.engine"
    with Process("mooncake_target.py", name) as process:
        yield process
