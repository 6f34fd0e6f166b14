"""Servers over the fake engine."""

from __future__ import annotations

from tests.host.conftest import fake_host

__all__ = ["fake_host"]
