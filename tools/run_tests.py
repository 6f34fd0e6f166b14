"""Runs pytest; what fails is run once more, alone, and both results are told.

Some hundred tests wait for real processes, kernels and clocks, and now and then one of them meets a busy machine. A
fault is one again when it is run by itself; a run that fails in more than a handful of places is not looked at twice.

Arguments go to pytest. The exit code is that of the first run, or of the second look where there was one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

MOST = 8
"""So many failures are looked at once more."""
_TESTS_FAILED = 1  # pytest's exit code


def _pytest(cache: str, *arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]
    return subprocess.run(command, check=False).returncode


def _failed(cache: str) -> list[str]:
    try:
        return sorted(json.loads(Path(cache, "v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        return []


def main(arguments: list[str]) -> int:
    """Run the tests; the exit code."""
    with tempfile.TemporaryDirectory(prefix="sandboxrt-pytest-") as cache:
        code = _pytest(cache, *arguments)
        failed = _failed(cache)
        if code != _TESTS_FAILED or not 0 < len(failed) <= MOST:
            return code
        print(f"\n{len(failed)} failed; they are run once more, alone:", *failed, sep="\n  ", flush=True)
        code = _pytest(cache, "--last-failed", *arguments)
        again = _failed(cache)
        passed = [name for name in failed if name not in again]
        print("\nfailed first and passed alone:", *(passed or ["none"]), sep="\n  ", flush=True)
        if again:
            print("failed twice:", *again, sep="\n  ", flush=True)
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
