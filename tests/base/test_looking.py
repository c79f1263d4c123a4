"""What is at a path, and what the system doesn't say of it: the same in every version of Python."""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from jmedlite.base.looking import exists, is_dir, is_file
from tests.support.packages import module_texts

LOOKS = {"exists", "is_file", "is_dir"}
ALONE = {"api/stick/install.py"}  # goes onto the stick and runs before anything is installed


def test_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "astray").symlink_to(tmp_path / "nothing")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for path, there, regular, folder in (
        (file, True, True, False),
        (tmp_path, True, False, True),
        (tmp_path / "link", True, True, False),
        (tmp_path / "astray", False, False, False),
        (tmp_path / "round", False, False, False),
        (tmp_path / "nothing", False, False, False),
        (file / "below", False, False, False),
        (tmp_path / "null\0byte", False, False, False),
    ):
        assert (exists(path), is_file(path), is_dir(path)) == (there, regular, folder), path


@pytest.mark.parametrize("look", [exists, is_file, is_dir])
def test_what_the_system_does_not_say(
    look: Callable[[Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="too long"):
        look(tmp_path / ("a" * 5000))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(PermissionError):
        look(tmp_path)


def test_nothing_asks_pathlib_itself() -> None:
    asked = [
        f"{name}:{node.lineno} {node.func.attr}"
        for name, text in module_texts().items()
        if name not in ALONE
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOOKS
    ]
    assert not asked
