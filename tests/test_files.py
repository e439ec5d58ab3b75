"""Files and directories are written whole or not at all, and what cannot be read or written says why."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shoal import files
from shoal.errors import ShoalError, UsageError
from shoal.files import (
    check_place,
    check_writable,
    read_directory,
    remove_directory,
    write_directory,
    write_file,
)


def write_version(version: str, size: int = 4096) -> files.Callable[[Path], object]:
    """A writer of two files that both carry the version."""

    def write(directory: Path) -> None:
        (directory / "a").write_text(version * size)
        (directory / "b").write_text(version * size)

    return write


def read_version(directory: Path) -> str:
    """The version that both files carry, in full."""
    a, b = (directory / "a").read_text(), (directory / "b").read_text()
    assert a == b and len(set(a)) == 1
    return a[0]


def test_write_file_takes_bytes_text_and_a_writer(tmp_path: Path) -> None:
    target = tmp_path / "new" / "parents" / "file"
    for content in (b"one", "two", lambda path: path.write_text("three")):
        write_file(target, content)
    assert target.read_text() == "three"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_write_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for version in "xyz":
        write_directory(target, write_version(version))
        assert read_version(target) == version
    assert list(tmp_path.iterdir()) == [target]


def test_write_directory_without_an_exchange_system_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *_, **__: object())
    target = tmp_path / "adapter"
    for version in "xyz":
        write_directory(target, write_version(version))
        assert read_version(target) == version
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_directory(tmp_path / "link", write_version("x"))
    assert (tmp_path / "link").is_symlink() and read_version(tmp_path / "real") == "x"


def test_a_failed_write_leaves_the_old_content_and_no_trace(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "a").write_text("half")
        raise KeyboardInterrupt

    write_directory(tmp_path / "d", write_version("x"))
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "d", fail)
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "fresh", fail)
    assert read_version(tmp_path / "d") == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_files_of_other_origin_are_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="thesis.tex"):
        write_directory(home, write_version("x"))
    with pytest.raises(UsageError, match="is a file"):
        write_directory(home / "thesis.tex", write_version("x"))
    monkeypatch.chdir(home)
    with pytest.raises(UsageError, match="current directory"):
        write_directory(".", write_version("x"))
    assert (home / "thesis.tex").read_text() == "years of work"


def test_safetensors_files_get_ordinary_modes(tmp_path: Path) -> None:
    write_directory(tmp_path / "d", lambda d: save_file({"t": torch.ones(2)}, d / "t.safetensors"))
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "d" / "t.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_concurrent_writers_and_readers_see_whole_versions(tmp_path: Path) -> None:
    target, errors = tmp_path / "d", []

    def repeat(action: files.Callable[[int], object]) -> None:
        try:
            for i in range(25):
                action(i)
        except BaseException as error:
            errors.append(error)

    write_directory(target, write_version("x"))
    writers = [lambda i: write_directory(target, write_version("xyz"[i % 3], 64))] * 2
    threads = [threading.Thread(target=repeat, args=(w,)) for w in writers]
    threads.append(threading.Thread(target=repeat, args=(lambda i: read_directory(target, read_version),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert list(tmp_path.iterdir()) == [target]


def test_a_reader_that_meets_a_mixture_reads_again(tmp_path: Path) -> None:
    target, tries = tmp_path / "d", []
    write_directory(target, write_version("x"))

    def read(directory: Path) -> str:
        first = (directory / "a").read_text()[0]
        if not tries:  # another version comes between the two files
            write_directory(target, write_version("y"))
        tries.append(first)
        if (directory / "b").read_text()[0] != first:
            raise KeyError("a mixture")
        return first

    assert read_directory(target, read) == "y" and tries == ["x", "y"]

    def fail(directory: Path) -> str:
        raise KeyError("the content itself")

    with pytest.raises(KeyError, match="content itself"):
        read_directory(target, fail)


WRITE_UNTIL_KILLED = """
import itertools, sys
from pathlib import Path
from shoal.files import write_directory, write_file
root = Path(sys.argv[1])
def write(version):
    def fill(directory):
        (directory / "a").write_text(version * 200_000)
        (directory / "b").write_text(version * 200_000)
    return fill
for version in itertools.cycle("xyz"):
    write_directory(root / "d", write(version))
    write_file(root / "f", version * 400_000)
    print(version, flush=True)
"""


def test_kill_leaves_whole_content_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    generator = random.Random(0)
    for _ in range(3):
        command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(tmp_path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(generator.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        read_version(tmp_path / "d")
        assert len((tmp_path / "f").read_text()) == 400_000
    write_directory(tmp_path / "d", write_version("x"))
    write_file(tmp_path / "f", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "f"]


def test_a_directory_is_removed_whole(tmp_path: Path) -> None:
    write_directory(tmp_path / "d", write_version("x"))
    remove_directory(tmp_path / "d")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ShoalError, match="cannot remove .*: there is no such file"):
        remove_directory(tmp_path / "d")


def test_the_leftover_of_a_living_writer_stays(tmp_path: Path) -> None:
    def write_again(directory: Path) -> None:
        write_directory(tmp_path / "d", write_version("y"))
        assert directory.is_dir()
        write_version("x")(directory)

    write_directory(tmp_path / "d", write_again)
    assert read_version(tmp_path / "d") == "x"


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path) -> None:
    write_directory(small_disk / "d", write_version("x", 8))
    for write in (write_version("y", 10**6), lambda d: save_file({"t": torch.ones(10**6)}, d / "a")):
        with pytest.raises(
            ShoalError, match=rf"{small_disk / 'd'}: the disk is full; free some space"
        ) as caught:
            write_directory(small_disk / "d", write)
        assert "\n" not in str(caught.value)
    with pytest.raises(ShoalError, match="the disk is full"):
        write_file(small_disk / "f", b"x" * 10**6)
    assert [p.name for p in small_disk.iterdir()] == ["d"] and read_version(small_disk / "d") == "x"


def test_a_read_only_file_system_is_one_line(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for target in (small_disk / "d", small_disk / "new" / "d"):
        with pytest.raises(ShoalError, match="read-only; choose a path"):
            write_directory(target, write_version("x"))


def test_a_mount_point_is_named(small_disk: Path) -> None:
    with pytest.raises(ShoalError, match="mount point; name a directory inside it"):
        write_directory(small_disk, write_version("x"))


def test_a_file_size_limit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from shoal.errors import ShoalError; from shoal.files import write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_file(sys.argv[1], b'x' * 8192)\n"
        "except ShoalError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "f")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ulimit -f" in result.stdout and result.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_failures_of_the_flush_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ShoalError, match=f"cannot write {tmp_path / 'f'}: "):
        write_file(tmp_path / "f", b"x")
    assert not list(tmp_path.iterdir())


def test_impossible_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "d", Path("/proc/shoal/d"), tmp_path / ("n" * 300)):
        with pytest.raises(ShoalError, match="cannot write .*; ch"):
            write_directory(place, write_version("x"))
    with pytest.raises(ShoalError, match="it is a directory"):
        write_file(tmp_path, b"x")


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet" / "there")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ShoalError, match="file"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(UsageError, match="is a file; name a directory"):
        check_place(tmp_path / "file", ())
    with pytest.raises(UsageError, match="holds file, which is not replaced"):
        check_place(tmp_path, ("report.json",))
    check_place(tmp_path, ("file",))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no directory"):
        read_directory(tmp_path / "none", read_version)
