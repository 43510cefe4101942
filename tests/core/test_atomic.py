"""Whole directories replaced in one step: complete, or as they were."""

from __future__ import annotations

import errno
import os

import pytest

from bertkit.core.atomic import staged_directory
from bertkit.core.errors import CheckpointError


def listing(directory):
    return {path.relative_to(directory).as_posix(): path.read_text() if path.is_file() else None
            for path in directory.rglob("*")}


@pytest.mark.parametrize("before", [None, {}, {"old.txt": "old", "kept": "no"}])
def test_a_directory_takes_its_place(before, tmp_path):
    target = tmp_path / "some" / "target"
    if before is not None:
        target.mkdir(parents=True)
        for name, text in before.items():
            (target / name).write_text(text)
    with staged_directory(target) as made:
        (made / "deep").mkdir()
        (made / "deep" / "new.txt").write_text("new")
        assert not target.exists() or listing(target) == before
    assert listing(target) == {"deep": None, "deep/new.txt": "new"}
    assert os.listdir(target.parent) == ["target"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("exists", [False, True])
def test_what_fails_leaves_what_was_there(exists, error, tmp_path):
    target = tmp_path / "new" / "target"
    if exists:
        target.mkdir(parents=True)
        (target / "old.txt").write_text("old")
    expected = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised, staged_directory(target) as made:
        (made / "half.txt").write_text("half")
        raise error
    assert listing(tmp_path) == ({"new": None, "new/target": None, "new/target/old.txt": "old"} if exists else {})
    if expected is CheckpointError:
        assert "disk is full" in str(raised.value) and str(target) in str(raised.value)


def test_a_rename_that_fails_is_taken_back(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old.txt").write_text("old")
    replace = os.replace

    def fail(source, to):
        if str(to) == str(target) and str(source).endswith(".tmp"):
            raise OSError(errno.EPERM, "Operation not permitted")
        replace(source, to)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CheckpointError, match="unchanged"), staged_directory(target) as made:
        (made / "new.txt").write_text("new")
    assert listing(tmp_path) == {"target": None, "target/old.txt": "old"}


def test_a_file_is_no_parent(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"), staged_directory(tmp_path / "file" / "target"):
        pass
