"""A small file system for one test, in a mount namespace that ends with it, and what runs there as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1024**2
TIMEOUT_S = 540


def run_inside(scenario: str, tmp_path: Path, *arguments: str, size_bytes: int = 300 * MIB) -> str:
    """Run a scenario of ``inside.py`` with a new file system for its state folder; what it printed."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    image, folder = tmp_path / "host.img", tmp_path / "host"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    mount = 'mount -o loop "$1" "$2" && shift 2 && exec "$@"'
    program = [sys.executable, "-m", "tests.fulldisk.inside"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", str(image), str(folder), *program, scenario, *arguments],
        env={**os.environ, "STATE_FOLDER": str(folder)},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
