"""Sandboxes that you own: isolated command execution as client, server and engine, on trio."""

from __future__ import annotations

from sandboxrt._version import __version__

__all__ = ["__version__"]
