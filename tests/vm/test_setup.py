"""``tools/setup_system.sh`` where packages are missing: what it says when they cannot be fetched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "tools/setup_system.sh"

# An apt-get of its own, which touches nothing; what is installed is asked of dpkg-query, which says that nothing is.
APT = """#!/bin/sh
case "$*" in
    *update*) {update} ;;
    *install*) {install} ;;
esac
"""


def run_setup(folder: Path, *, update: str, install: str) -> subprocess.CompletedProcess[str]:
    # Whoever runs this: nothing outside the folder may change, so the script sees a system with its own programs only.
    tools = folder / "bin"
    tools.mkdir()
    for name, text in {
        "apt-get": APT.format(update=update, install=install),
        "dpkg-query": "#!/bin/sh\necho no\n",
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /usr/sbin && exec "$1"', str(folder), str(SETUP)],
        env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace of its own")


def test_a_missing_network_is_named(tmp_path: Path) -> None:
    done = run_setup(
        tmp_path, update="echo 'W: could not resolve'; exit 100", install="echo 'E: no such package'; exit 100"
    )
    assert done.returncode == 1
    assert "connect it to a network" in done.stderr
    assert "could not resolve" in done.stderr and "no such package" in done.stderr


def test_a_package_that_does_not_exist_is_not_the_networks_fault(tmp_path: Path) -> None:
    done = run_setup(tmp_path, update="exit 0", install="echo 'E: no such package'; exit 100")
    assert done.returncode == 1
    assert "network" not in done.stderr
    assert "no such package" in done.stderr


def test_lists_that_are_old_do_not_stop_it(tmp_path: Path) -> None:
    done = run_setup(tmp_path, update="echo 'W: could not resolve'; exit 100", install="exit 0")
    assert "is there a network?" in done.stdout
    assert "connect it to a network" not in done.stderr
    assert list(tmp_path.glob("tmp.*")) == []


def test_listing_installs_nothing(tmp_path: Path) -> None:
    listed = subprocess.run(
        [SETUP, "--list"], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    more = subprocess.run([SETUP, "--list", "--test"], capture_output=True, text=True, check=True)
    assert "crun" in listed.stdout.split()
    assert set(listed.stdout.split()) < set(more.stdout.split())
    assert subprocess.run([SETUP, "--everything"], capture_output=True, check=False).returncode == 1
