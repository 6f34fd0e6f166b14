"""The blocking client.

Generated from sandboxrt/client by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

from sandboxrt.sync.client import SandboxClient
from sandboxrt.sync.command import CommandHandle, OutputIterator
from sandboxrt.sync.registries import Registries
from sandboxrt.sync.sandbox import Sandbox
from sandboxrt.sync.service import ServiceURL
from sandboxrt.sync.tunnel import Tunnel

__all__ = ["CommandHandle", "OutputIterator", "Registries", "Sandbox", "SandboxClient", "ServiceURL", "Tunnel"]
