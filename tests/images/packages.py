"""Packs installed Debian packages into file lists, so that test images need no download."""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path

UNWANTED_PATHS = re.compile(
    r"/usr/share/(doc|man|info|locale|lintian|bug|common-licenses|i18n|perl5|zoneinfo|gcc|bash-completion|zsh)(/|$)"
    r"|/etc/(init\.d|systemd|cron\.daily|logrotate\.d|alternatives)(/|$)|/usr/lib/(systemd|perl5|sysusers\.d)(/|$)"
    r"|\.(a|pyc)$|/__pycache__"
)
UNWANTED_PACKAGES = frozenset(
    {"dpkg", "perl", "perl-base", "usrmerge", "debconf", "adduser", "passwd", "init-system-helpers", "lsb-base"}
    | {"tzdata", "sysvinit-utils", "mawk", "media-types"}
)


@cache
def _installed() -> dict[str, tuple[str, str]]:
    """Name to version and dependencies, of every installed package and of every name that one provides."""
    fields = "${db:Status-Status}\t${Package}\t${Version}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    lines = subprocess.run(["dpkg-query", "-W", "-f", fields], check=True, capture_output=True, text=True).stdout
    found: dict[str, tuple[str, str]] = {}
    provided: dict[str, tuple[str, str]] = {}
    for line in lines.splitlines():
        status, name, version, depends, provides = line.split("\t")
        if status == "installed":
            found[name] = (version, depends)
            for other in re.findall(r"[a-z0-9][a-z0-9+.-]+", re.sub(r"\([^)]*\)", "", provides)):
                provided[other] = ("", name)
    return provided | found


def closure(names: tuple[str, ...]) -> dict[str, str]:
    """Packages that these need, with their versions."""
    installed = _installed()
    wanted, result = list(names), {}
    while wanted:
        name = wanted.pop()
        if name in result or name in UNWANTED_PACKAGES:
            continue
        if name not in installed:
            raise AssertionError(f"the Debian package {name} is not installed: run tools/setup_system.sh --test")
        version, depends = installed[name]
        if version:
            result[name] = version
        for group in re.sub(r"\([^)]*\)", "", depends).split(","):
            choices = [choice.strip().partition(":")[0] for choice in group.split("|")]
            wanted += [choice for choice in choices if choice in installed][:1]
    return result


def files_of(packages: dict[str, str]) -> dict[str, Path]:
    """Path in an image to path here, for everything in these packages; ``/bin`` and its like are below ``/usr``."""
    listing = subprocess.run(["dpkg", "-L", *sorted(packages)], check=True, capture_output=True, text=True).stdout
    result = {}
    for line in listing.splitlines():
        if not line.startswith("/") or line == "/." or UNWANTED_PATHS.search(line) or not os.path.lexists(line):
            continue
        path = re.sub(r"^/(bin|sbin|lib|lib32|lib64|libx32)(/|$)", r"/usr/\1\2", line)
        if not path.startswith("/usr/") and not path.startswith("/etc/"):
            continue
        result[path] = Path(line)
    return result
