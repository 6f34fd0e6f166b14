"""Compiles the package's small C programs into wheels, where a C compiler is there; without one the wheel is pure."""

from __future__ import annotations

import importlib.util
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILE = "sandboxrt/engine/init/compile.py"


class ProgramsBuildHook(BuildHookInterface[Any]):
    """Adds the program of each C file of the package beside its source, and marks the wheel as this platform's."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile. An editable install compiles at first use instead, so that it never runs an older source."""
        if self.target_name != "wheel" or version == "editable":
            return
        root = Path(self.root)
        compiler = _load(root / COMPILE)
        self._folder = tempfile.TemporaryDirectory(prefix="sandboxrt-build-")
        programs = {}
        for source in sorted((root / "sandboxrt").rglob("*.c")):
            target = Path(self._folder.name) / source.stem
            try:
                compiler.compile_program(source, target)
            except compiler.CompileError as error:
                self.app.display_warning(f"{source.name} will be compiled at first use: {error}")
                return
            programs[str(target)] = str(compiler.prebuilt_name(source).relative_to(root))
        if programs:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
            build_data["force_include"].update(programs)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Forget the compiled programs: they are in the wheel."""
        if self._folder is not None:
            self._folder.cleanup()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("sandboxrt_compile", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
