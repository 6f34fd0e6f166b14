"""The systems that are tried, and where this machine takes Debian's packages from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import attrs

__all__ = ["BOOKWORM", "RELEASES", "TRIXIE", "Release", "mirror"]

MIRROR_VARIABLE = "SANDBOXRT_VM_MIRROR"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# A small server as Debian's installer leaves it: its kernel, systemd, logins over ssh, sudo; what the README asks for.
_SYSTEM = (
    "linux-image-cloud-amd64 initramfs-tools zstd systemd systemd-sysv dbus dbus-user-session libpam-systemd udev kmod "
    "apparmor passwd login sudo openssh-server iproute2 procps"
).split()
_ASKED_FOR = "git python3".split()


@attrs.frozen
class Release:
    """One release of Debian."""

    number: int
    codename: str
    packages: tuple[str, ...] = (*_SYSTEM, *_ASKED_FOR)

    def __str__(self) -> str:
        return f"Debian {self.number}"


BOOKWORM = Release(12, "bookworm")
TRIXIE = Release(13, "trixie")
RELEASES = (BOOKWORM, TRIXIE)


def mirror() -> str:
    """The address that this machine itself gets Debian's main packages from.

    ``SANDBOXRT_VM_MIRROR`` names another one, for machines that are no Debian.

    Raises:
        RuntimeError: None is configured; says what to do.
    """
    told = os.environ.get(MIRROR_VARIABLE, "").strip()
    if told:
        return told
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    codenames = {release.codename for release in RELEASES}
    for line in listing.splitlines():
        codename, component, address = line.split(" ", 2)
        if codename in codenames and component == "main":
            return address
    raise RuntimeError(
        f"apt on this machine has no repository of {' or '.join(sorted(codenames))}; "
        f"set {MIRROR_VARIABLE} to the address of a mirror of Debian"
    )
