"""Removal of what an adversary left: deep, wide, linked, locked, mounted over."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrt.engine.remove_tree import remove_tree


def make_deep(folder: Path, depth: int) -> None:
    folder.mkdir()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d" * 100, dir_fd=fd)
        below = os.open("d" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


async def test_a_tree_five_thousand_folders_deep(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 5000)
    descriptors = len(os.listdir("/proc/self/fd"))
    await remove_tree(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


async def test_more_folders_than_are_noted_at_once_at_every_depth(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 40)
    for path, folders, _ in list(os.walk(tmp_path / "deep")):
        for number in range(300 if not folders or path.count("d" * 100) < 2 else 3):
            Path(path, f"full{number}").mkdir()
            Path(path, f"full{number}", "file").touch()
            Path(path, f"empty{number}").mkdir()
    await remove_tree(tmp_path / "deep")
    assert not (tmp_path / "deep").exists()


async def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "folder").symlink_to(outside)
    (tree / "file").symlink_to(outside / "keep")
    (tree / "up").symlink_to("..")
    (tree / "self").symlink_to("self")
    await remove_tree(tree)
    assert not tree.exists()
    assert (outside / "keep").read_text() == "kept"
    (tmp_path / "link").symlink_to(outside)
    await remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (outside / "keep").exists()


async def test_every_kind_of_file_and_odd_names(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "fifo")
    (tree / "a\nb").touch()
    os.close(os.open(os.fsencode(tree) + b"/\xff\xfe", os.O_CREAT | os.O_WRONLY))
    (tree / "locked").mkdir()
    (tree / "locked" / "file").touch()
    (tree / "locked").chmod(0)
    await remove_tree(tree)
    assert not tree.exists()


async def test_what_does_not_exist_is_removed_already(tmp_path: Path) -> None:
    await remove_tree(tmp_path / "nothing")
    await remove_tree(tmp_path / "nothing" / "below")
    (tmp_path / "file").touch()
    await remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.container
async def test_a_mount_inside_is_left_alone(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (mounted := tree / "a" / "mounted").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mounted], check=True)
    try:
        for content in ("", "content"):
            if content:
                (mounted / "file").write_text(content)
            with pytest.raises(OSError) as caught:
                await remove_tree(tree)
            assert caught.value.errno == errno.EXDEV
        assert (mounted / "file").read_text() == "content"
    finally:
        subprocess.run(["umount", mounted], check=True)
    await remove_tree(tree)
    assert not tree.exists()


@pytest.mark.container
async def test_an_ordinary_user_removes_its_own_locked_folders(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "locked" / "below").mkdir(parents=True)
    (tree / "locked" / "file").touch()
    for path, _, _ in os.walk(tree):
        os.chown(path, 54321, 54321)
    (tree / "locked").chmod(0o000)
    for folder in [tree, *tree.parents][:4]:
        folder.chmod(folder.stat().st_mode | 0o055)
    os.chown(tmp_path, 54321, 54321)
    code = "import sys, trio; from pathlib import Path; from sandboxrt.engine.remove_tree import remove_tree; "
    code += "trio.run(remove_tree, Path(sys.argv[1]))"

    program = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", sys.executable, "-c", code, tree]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not tree.exists()
