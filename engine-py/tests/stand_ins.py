"""Loads one file of a large package without the rest: whatever it imports of others is a stand-in that takes anything."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class _Anything(type):
    """A class whose attributes are such classes, too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = stand_in(name)
        setattr(cls, name, made)
        return made

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        # As a decorator it leaves what it decorates alone.
        if cls.__dict__.get("_is_stand_in") and len(arguments) == 1 and isinstance(arguments[0], (type, types.FunctionType)):
            return arguments[0]
        return super().__call__(*arguments, **options)

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


def stand_in(name: str) -> Any:
    """Something that can be a base class, a decorator, a type, a function."""

    def init_subclass(cls: type, **_: Any) -> None:
        cls._is_stand_in = False  # type: ignore[attr-defined]

    body = {
        "_is_stand_in": True,
        "__init__": lambda self, *_, **__: None,
        "__init_subclass__": classmethod(init_subclass),
        "__class_getitem__": classmethod(lambda cls, _: cls),
        "__getattr__": lambda self, attribute: _missing(attribute),
        "__call__": lambda self, *_, **__: stand_in("result")(),
    }
    return _Anything(name, (), body)


def _missing(attribute: str) -> Any:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return stand_in(attribute)()


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = stand_in(name)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots: set[str]) -> None:
        self.roots = roots

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in self.roots:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def loaded(path: Path, name: str, roots: set[str], known: dict[str, dict[str, Any]]) -> Iterator[types.ModuleType]:
    """The module in a file, under its own name. Imports below `roots` are stand-ins, but for what `known` says of a module."""
    before = dict(sys.modules)
    finder = _Finder(roots)
    sys.meta_path.insert(0, finder)
    try:
        for module, values in known.items():
            made = importlib.import_module(module)
            for attribute, value in values.items():
                setattr(made, attribute, value)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.meta_path.remove(finder)
        for added in set(sys.modules) - set(before):
            if added.split(".")[0] in roots:
                del sys.modules[added]
