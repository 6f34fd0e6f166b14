"""The official clients: three generations, each in a virtual environment of its own, driven as processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

__all__ = ["GENERATIONS", "Answer", "Driver", "Environments"]

GENERATIONS: Final = {
    "0.7.38": ("langsmith[sandbox]==0.7.38", "httpx<0.29"),
    "0.11.1": ("langsmith[sandbox]==0.11.1",),
    "0.15.0": ("langsmith[sandbox]==0.15.0",),
}
_PROGRAM: Final = Path(__file__).with_name("driver")
_INSTALL_S: Final = 600
_GRACE_S: Final = 30


@attrs.frozen
class Answer:
    """How one scenario went with one client."""

    ok: bool
    error: str
    trace: str
    notes: dict[str, Any]
    seconds: float


@attrs.define
class Driver:
    """A process with one generation's client that runs scenarios, one at a time."""

    generation: str
    _process: subprocess.Popen[str]

    def run(self, row: str, form: str, *, endpoint: str, key: str, timeout_s: float = 60, **options: Any) -> Answer:
        """Run a scenario; the process gives up by itself after ``timeout_s``."""
        order = {
            "row": row, "form": form, "endpoint": endpoint, "key": key, "timeout": timeout_s, "options": options,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the driver of langsmith {self.generation} ended with {self._process.wait(_GRACE_S)}")
        answer = json.loads(line)
        return Answer(
            answer["ok"], answer.get("error", ""), answer.get("trace", ""), answer["notes"], answer["seconds"]
        )

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@attrs.define
class Environments:
    """Virtual environments in a folder that may be kept from run to run."""

    folder: Path

    def python(self, generation: str) -> Path:
        """The interpreter that has this generation's client, installed if need be."""
        requirements = GENERATIONS[generation]
        digest = hashlib.sha256(" ".join((*requirements, sys.version)).encode()).hexdigest()[:16]
        place = self.folder / f"langsmith-{generation}-{digest}"
        if not (place / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True, timeout=_INSTALL_S)
            subprocess.run(
                [str(place / "bin/python"), "-m", "pip", "install", "--quiet", *requirements],
                check=True,
                timeout=_INSTALL_S,
                env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            )
            (place / "complete").touch()
        return place / "bin/python"

    @contextmanager
    def driver(self, generation: str, endpoint: str, key: str) -> Iterator[Driver]:
        """A driver whose environment names the endpoint and the key, as a user's would."""
        python = self.python(generation)
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment |= {"LANGSMITH_ENDPOINT": endpoint, "LANGSMITH_API_KEY": key, "LANGSMITH_TRACING": "false"}
        process = subprocess.Popen(
            [str(python), "-I", "-c", _START, str(_PROGRAM), generation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        driver = Driver(generation, process)
        try:
            yield driver
        finally:
            driver.close()


# Isolated from this project's folder and packages; only the driver's own folder is added.
_START: Final = (
    "import runpy, sys; folder = sys.argv.pop(1); sys.path.insert(0, folder); "
    "runpy.run_path(folder + '/__main__.py', run_name='__main__')"
)
