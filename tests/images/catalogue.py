"""The images that tests use, under the names that the README of the system uses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from tests.images.layouts import Blob, entry, file_layer, write_layout
from tests.images.packages import closure, files_of

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE = ("bash", "dash", "coreutils", "grep", "sed", "findutils", "hostname", "tar", "gzip", "libc-bin", "base-files")
PYTHON = ("python3", "make", "procps", "ncurses-base")
REDIS = ("redis-server",)
POSTGRES = ("postgresql-15", "util-linux", "hostname")

MAKEFILE = """\
build:
\t@for step in 1 2 3 4 5 6 7 8; do \\
\t\techo "building step $$step"; \\
\t\techo "warning: step $$step is only a test" >&2; \\
\t\tsleep 0.25; \\
\tdone; echo done
.PHONY: build
"""
SERVER = """\
import time

print("Starting", flush=True)
print("Ready", flush=True)
while True:
    time.sleep(0.5)
    print("tick", flush=True)
"""
TRAIN = """\
import time

for epoch in range(1, 1001):
    print(f"epoch {epoch}", flush=True)
    time.sleep(0.1)
"""
BACKGROUND_JOB = """\
import time

while True:
    print("working", flush=True)
    time.sleep(1)
"""


ENTRYPOINT = """\
#!/bin/bash
# As the well-known image's: makes a database where there is none, then becomes its server, as a user of its own.
set -eu
export PATH="/usr/lib/postgresql/15/bin:$PATH"
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /run/postgresql
    chown postgres:postgres "$PGDATA" /run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --no-sync --username=postgres --locale=C --encoding=UTF8 --auth=trust >/dev/null
    echo "host all all all ${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}" >>"$PGDATA/pg_hba.conf"
fi
exec "$@" -c fsync=off
"""


@attrs.frozen
class Recipe:
    """An image: its repository and tag, what it is packed from, and the function that packs it."""

    repository: str
    tag: str
    packages: tuple[str, ...]
    build: Callable[[Recipe], tuple[list[Blob], dict[str, Any]]]

    @property
    def folder_name(self) -> str:
        return f"{self.repository.replace('/', '-')}-{self.tag}"

    @property
    def key(self) -> str:
        """Changes with the packages and with everything in this folder that builds."""
        state = hashlib.sha256(json.dumps(closure(self.packages), sort_keys=True).encode())
        for name in ("catalogue.py", "layouts.py", "packages.py"):
            state.update(Path(__file__).with_name(name).read_bytes())
        return state.hexdigest()[:16]


def _skeleton(shell: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What the packages' own scripts would have made."""
    return [
        *(entry(name, link=f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")),
        *(entry(name) for name in ("dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys")),
        *(entry(name) for name in ("usr", "usr/local", "usr/local/bin", "usr/lib64")),
        *(entry(name) for name in ("var", "var/lib", "var/log", "var/cache")),
        entry("var/run", link="/run"),
        entry("tmp", mode=0o1777),
        entry("var/tmp", mode=0o1777),
        entry(
            "etc/passwd",
            f"root:x:0:0:root:/root:{shell}\napp:x:1234:1234:app:/srv/app:/bin/sh\n"
            "redis:x:999:999:redis:/var/lib/redis:/bin/sh\n"
            "postgres:x:998:998:postgres:/var/lib/postgresql:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        ),
        entry(
            "etc/group", "root:x:0:\nextra:x:2000:app\napp:x:1234:\nredis:x:999:\npostgres:x:998:\nnogroup:x:65534:\n"
        ),
        entry("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        entry("usr/bin/sh", link="dash"),
    ]


def _base() -> tuple[dict[str, Path], Blob]:
    files = files_of(closure(BASE))
    for name in ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/usr/bin/sh"):
        files.pop(name, None)
    return files, file_layer(files, _skeleton("/bin/bash"))


def _python(recipe: Recipe) -> tuple[list[Blob], dict[str, Any]]:
    below, base = _base()
    files = {name: source for name, source in files_of(closure(recipe.packages)).items() if name not in below}
    work = [
        entry("usr/bin/python", link="python3"),
        entry("app"),
        entry("app/Makefile", MAKEFILE),
        entry("app/server.py", SERVER),
        entry("app/train.py", TRAIN),
        entry("app/background_job.py", BACKGROUND_JOB),
    ]
    config = {"Env": [PATH, "LANG=C.UTF-8", "PYTHON_VERSION=3.12"], "WorkingDir": "/app", "Cmd": ["python3"]}
    return [base, file_layer(files, work)], config


def _redis(recipe: Recipe) -> tuple[list[Blob], dict[str, Any]]:
    below, base = _base()
    files = {name: source for name, source in files_of(closure(recipe.packages)).items() if name not in below}
    files.pop("/etc/redis/redis.conf", None)
    config = {
        "Env": [PATH, "REDIS_VERSION=7.0"],
        "WorkingDir": "/data",
        "Cmd": ["redis-server"],
        "Volumes": {"/data": {}},
        "ExposedPorts": {"6379/tcp": {}},
    }
    return [
        base,
        file_layer(files, [entry("data", uid=999, gid=999), entry("var/lib/redis", uid=999, gid=999)]),
    ], config


def _postgres(recipe: Recipe) -> tuple[list[Blob], dict[str, Any]]:
    below, base = _base()
    files = {name: source for name, source in files_of(closure(recipe.packages)).items() if name not in below}
    work = [
        entry("usr/local/bin/docker-entrypoint.sh", ENTRYPOINT, mode=0o755),
        entry("var/lib/postgresql", uid=998, gid=998),
    ]
    config = {
        "Env": [PATH, "PGDATA=/var/lib/postgresql/data"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["postgres"],
        "ExposedPorts": {"5432/tcp": {}},
    }
    return [base, file_layer(files, work)], config


def _no_bash(recipe: Recipe) -> tuple[list[Blob], dict[str, Any]]:
    files = files_of(closure(recipe.packages))
    for name in ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/usr/bin/sh", "/usr/bin/bash", "/usr/bin/rbash"):
        files.pop(name, None)
    config = {
        "Env": [PATH, "GREETING=hello world", "EMPTY="],
        "User": "app",
        "WorkingDir": "/srv/app",
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo started"],
    }
    return [file_layer(files, [*_skeleton("/bin/sh"), entry("srv/app", uid=1234, gid=1234)])], config


def _tiny(recipe: Recipe) -> tuple[list[Blob], dict[str, Any]]:
    wanted = ("/usr/bin/dash", "/libc.so.6", "/ld-linux")
    files = {name: path for name, path in files_of(closure(recipe.packages)).items() if any(w in name for w in wanted)}
    return [file_layer(files, _skeleton("/bin/sh"))], {"Env": [PATH]}


RECIPES = {
    "python:3.12-slim": Recipe("library/python", "3.12-slim", BASE + PYTHON, _python),
    "redis:7": Recipe("library/redis", "7", BASE + REDIS, _redis),
    "postgres:16": Recipe("library/postgres", "16", BASE + POSTGRES, _postgres),
    "nobash:1": Recipe("library/nobash", "1", ("dash", "coreutils", "libc-bin", "hostname"), _no_bash),
    "tiny:1": Recipe("library/tiny", "1", ("dash", "libc6"), _tiny),
}


@attrs.define
class Catalogue:
    """Builds each image once, in a folder that may be kept from run to run."""

    folder: Path

    def layout(self, name: str) -> Path:
        """The OCI layout of the image of that name; its tag is the image's tag."""
        recipe = RECIPES[name]
        path = self.folder / f"{recipe.folder_name}-{recipe.key}"
        if not path.exists():
            draft = self.folder / f".{path.name}-{os.getpid()}"
            shutil.rmtree(draft, ignore_errors=True)
            layers, config = recipe.build(recipe)
            write_layout(draft, layers, config, tag=recipe.tag)
            try:
                draft.rename(path)
            except OSError:  # another test run was faster
                shutil.rmtree(draft)
        return path

    def reference(self, name: str) -> str:
        """The same, as ``docker_image=`` takes it."""
        return f"oci:{self.layout(name)}:{RECIPES[name].tag}"
