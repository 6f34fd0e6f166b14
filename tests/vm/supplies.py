"""What a guest would fetch: Debian's packages and Python's wheels, on a disk that it finds below /srv/supplies."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import attrs

from tests.vm.cache import key_of
from tests.vm.debian import KEYRING, Release, mirror
from tests.vm.image import make_disk, run_quietly

__all__ = ["Wanted", "build_supplies", "supplies_key"]

ROOT = Path(__file__).resolve().parents[2]
_FETCH_S = 900
_SPARE_BYTES = 64 * 1024**2
# hatchling asks for it by itself when it makes an editable package.
_BUILDS_EDITABLE = "editables"
# On top of what the product asks for: the second runtime.
_CHECKS = ("runc",)


@attrs.frozen
class Wanted:
    """What a run needs in the guest."""

    packages: tuple[str, ...]
    requirements: tuple[str, ...]

    @classmethod
    def for_run(cls, *, suites: bool) -> Wanted:
        """What quickstart.sh and the checks ask for; with ``suites`` also what the tests do."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        requirements = [*project["project"]["dependencies"], *project["build-system"]["requires"], _BUILDS_EDITABLE]
        if suites:
            requirements += project["dependency-groups"]["test"]
        arguments = ["--test"] if suites else []
        listed = subprocess.run(
            [str(ROOT / "tools/setup_system.sh"), "--list", *arguments], check=True, capture_output=True, text=True
        ).stdout.split()
        return cls(packages=(*listed, *_CHECKS), requirements=tuple(requirements))


def supplies_key(release: Release, wanted: Wanted, system: str) -> str:
    """All that a disk of supplies is made from; ``system`` is the key of the system that lacks them."""
    return key_of(release.codename, attrs.asdict(wanted), system, Path(__file__).read_text())


def build_supplies(wanted: Wanted, release: Release, system: Path, folder: Path) -> None:
    """Make ``supplies.img`` in ``folder`` for the system whose entry of the cache is ``system``."""
    content = folder / "content"
    packages, wheels = content / "packages", content / "wheels"
    packages.mkdir(parents=True)
    wheels.mkdir()
    _fetch_packages(wanted.packages, release, system / "status", folder / "apt", packages)
    (packages / "Packages").write_text(_index(packages))
    _fetch_wheels(wanted.requirements, (system / "python").read_text().strip(), folder, wheels)
    size = sum(file.stat().st_size for file in content.rglob("*"))
    make_disk(folder / "supplies.img", content, size + size // 8 + _SPARE_BYTES, "supplies")
    shutil.rmtree(content)


def _fetch_packages(names: tuple[str, ...], release: Release, status: Path, apt: Path, target: Path) -> None:
    """Download what apt would install for ``names`` on a system with dpkg's ``status``."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc"):
        (apt / name).mkdir(parents=True)
    (apt / "etc/sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {release.codename} main\n")
    shutil.copyfile(status, apt / "state/status")
    (apt / "apt.conf").write_text(
        f'Dir::State "{apt}/state";\nDir::State::status "{apt}/state/status";\nDir::Cache "{apt}/cache";\n'
        f'Dir::Etc::sourcelist "{apt}/etc/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::preferencesparts "/dev/null";\n'
        'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\nAPT::Sandbox::User "root";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (
        ["--error-on=any", "update"],
        ["install", "--yes", "--download-only", "--no-install-recommends", *names],
    ):
        run_quietly(["apt-get", "-qq", *arguments], limit_s=_FETCH_S, environment=environment)
    for package in (apt / "cache/archives").glob("*.deb"):
        package.rename(target / package.name)
    shutil.rmtree(apt)


def _index(packages: Path) -> str:
    """What apt reads of a folder of packages."""
    stanzas = []
    for package in sorted(packages.glob("*.deb")):
        control = subprocess.run(
            ["dpkg-deb", "--field", str(package)], check=True, capture_output=True, text=True
        ).stdout.strip()
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        stanzas.append(f"{control}\nFilename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n")
    return "\n".join(stanzas)


def _fetch_wheels(requirements: tuple[str, ...], python: str, folder: Path, target: Path) -> None:
    """Download what pip would install for ``requirements`` under a Python of exactly that version.

    pip itself evaluates markers (``python_full_version < "3.11.3"``) for the interpreter that runs it; uv can do so for
    another.
    """
    asked, exact = folder / "asked.txt", folder / "exact.txt"
    asked.write_text("\n".join(requirements) + "\n")
    compiling = ["pip", "compile", "--quiet", "--no-header", "--no-annotate", f"--python-version={python}"]
    run_quietly(
        [sys.executable, "-m", "uv", *compiling, "--python-platform=linux", "-o", str(exact), str(asked)],
        limit_s=_FETCH_S,
    )
    minor = ".".join(python.split(".")[:2])
    run_quietly(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
            *(f"--python-version={minor}", "--implementation=cp", f"--abi=cp{minor.replace('.', '')}", "--abi=abi3"),
            *("--abi=none", "--dest", str(target), "--requirement", str(exact)),
        ],
        limit_s=_FETCH_S,
    )
    asked.unlink()
    exact.unlink()
