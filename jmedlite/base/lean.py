"""Lean imports: one module of a package without all that the package's own `__init__` brings along.

llama-cpp-python's bindings come with a template engine, a disk cache and a server's types, gguf's constants with YAML
and SentencePiece; together they take as long to import as all else that a process of ours needs at its start. Only for
processes of our own: in a program that imports jmedlite, packages are what they are.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

PACKAGES = ("llama_cpp", "gguf")


class LeanPackage(ModuleType):
    """A package whose `__init__` runs once somebody asks for a name that no imported module of it has."""

    def __getattr__(self, name: str) -> object:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec.loader.exec_module(self)
        return getattr(self, name)


def import_leanly() -> None:
    """Importing a module of `PACKAGES` then runs nothing but that module; call it before anything imports one."""
    for name in PACKAGES:
        spec = None if name in sys.modules else find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            package = LeanPackage(name, None)
            package.__spec__, package.__file__ = spec, spec.origin
            package.__path__ = spec.submodule_search_locations
            sys.modules[name] = package
