import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modicl.config import UserError
from modicl.files import DamagedError, StorageError, check_folder, read_json, write_file, write_folder, write_json


def test_json_round_trip_keeps_every_bit(tmp_path):
    value = {"a": 0.1 + 0.2, "b": [1, None, "ü"], "c": 1e-300}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_a_failed_write_leaves_the_old_file_and_says_why(tmp_path, monkeypatch, number, words):
    path = tmp_path / "x.json"
    write_file(path, b"old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError, match=words):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    folder = tmp_path / "f"
    write_folder(folder, fill_with(a=b"1"))

    def fail(new):
        (new / "a").write_bytes(b"2")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="disk is full"):
        write_folder(folder, fail)
    check_folder(folder, ["a"])
    assert (folder / "a").read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_path_through_a_file_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of its path is a file"):
        write_folder(tmp_path / "file" / "run", lambda new: None)


def fill_with(**contents: bytes) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, data in contents.items():
            (folder / name).write_bytes(data)

    return fill


def test_checksums_are_those_of_sha256sum(tmp_path):
    write_folder(tmp_path / "f", fill_with(a=b"data", b=b"more"))
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "f", check=True)


@pytest.mark.parametrize("name", ["a", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_every_damage_is_found_and_the_file_named(tmp_path, name, damage):
    folder = tmp_path / "f"
    write_folder(folder, fill_with(a=b"data" * 100))
    path, data = folder / name, (folder / name).read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[:-3])
    else:
        path.write_bytes(data[:10] + bytes([data[10] ^ 4]) + data[11:])
    with pytest.raises(DamagedError, match=r"a is (damaged|missing)|SHA256SUMS is missing or damaged"):
        check_folder(folder, ["a"])


def test_reading_what_is_not_json(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1')
    with pytest.raises(DamagedError, match=r"x\.json is damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="There is no file"):
        read_json(tmp_path / "y.json")
