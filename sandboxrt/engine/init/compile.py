"""How the package's small C programs are compiled: standard library only, because the build hook runs it too."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

COMPILERS = ("musl-gcc", "cc", "gcc", "clang")
"""In this order: musl's static programs are a tenth of the size of glibc's."""
FLAGS = ("-std=gnu11", "-static", "-Os", "-s", "-Wall")
# A second where nothing else runs; where everything does, on an emulated machine, a minute was seen not to be enough.
TIMEOUT_S = 300.0


class CompileError(Exception):
    """The program could not be compiled; the message has the compiler's own words."""


class CompilerTooSlowError(CompileError):
    """A compiler that is there did not end in time: the machine has too much to do."""


def prebuilt_name(source: Path) -> Path:
    """Where a wheel carries the program of ``source``: beside it."""
    return source.with_suffix(".bin")


def cache_name(source: Path) -> str:
    """A file name that changes with the source and the headers beside it, the flags and the machine."""
    digest = hashlib.sha256(source.read_bytes())
    for header in sorted(source.parent.glob("*.h")):
        digest.update(header.read_bytes())
    digest.update("\0".join((*COMPILERS, *FLAGS, platform.machine())).encode())
    return f"{source.stem}-{digest.hexdigest()[:20]}"


def compile_program(source: Path, target: Path) -> None:
    """Compile ``source`` into ``target``, which appears complete or not at all, also when several do it at once.

    Raises:
        CompileError: No compiler works here. A compiler without a static libc fails, and the next one is tried; a
            slow one ends it all, for the next one would be as slow.
    """
    reasons = []
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(handle)
    try:
        for compiler in COMPILERS:
            program = shutil.which(compiler)
            if program is None:
                continue
            command = [program, *FLAGS, "-o", name, str(source)]
            try:
                done = subprocess.run(
                    command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
                )
            except subprocess.TimeoutExpired as error:
                raise CompilerTooSlowError(f"{compiler} did not end within {TIMEOUT_S:g} s") from error
            except OSError as error:
                reasons.append(f"{compiler}: {error}")
                continue
            if done.returncode == 0:
                os.chmod(name, 0o755)  # noqa: S103 - container users, who are others here, execute it
                os.replace(name, target)
                return
            reasons.append(f"{compiler}: {done.stderr.strip()[-500:]}")
    finally:
        Path(name).unlink(missing_ok=True)
    raise CompileError("; ".join(reasons) or f"none of {', '.join(COMPILERS)} is installed")
