"""The first process of a container, and the host's end of its socket."""

from __future__ import annotations

from sandboxrt.engine.init.build import INIT_SOURCE, build_tool
from sandboxrt.engine.init.channel import InitChannel
from sandboxrt.engine.init.gate import IdMap
from sandboxrt.engine.init.process import InitProcess

__all__ = ["INIT_SOURCE", "IdMap", "InitChannel", "InitProcess", "build_tool"]
