"""How values are written on the command line: durations, sizes, ports, ``KEY=VALUE``."""

from __future__ import annotations

import re
from typing import Any

import click

from sandboxrt.host.connections import PortRules

__all__ = ["ASSIGNMENT", "DURATION", "PORTS", "SIZE", "AssignmentType", "DurationType", "PortsType", "SizeType"]

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>ms|s|m|h|)")
_DURATION_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?)(?:i?b)?", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


class DurationType(click.ParamType[float]):
    """Seconds, written ``30``, ``30s``, ``500ms``, ``5m`` or ``1h``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds as a float."""
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a duration; write it like 30s, 500ms, 5m or 1h (0 means none)", param, ctx)
        return float(match["number"]) * _DURATION_UNITS[match["unit"]]


class SizeType(click.ParamType[int]):
    """Bytes, written ``512m``, ``4g``, ``1048576``; units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes as an int."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a size; write it like 512m, 4g or a number of bytes", param, ctx)
        return int(float(match["number"]) * _SIZE_UNITS[match["unit"].lower()])


class AssignmentType(click.ParamType[tuple[str, str]]):
    """``KEY=VALUE``."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """The pair."""
        if isinstance(value, tuple):
            return value
        key, separator, text = value.partition("=")
        if not separator or not key:
            self.fail(f"{value!r} is not KEY=VALUE, e.g. DEBUG=1", param, ctx)
        return key, text


class PortsType(click.ParamType[PortRules]):
    """Ports, written ``5432,8000-8999``, or ``none``."""

    name = "ports"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PortRules:
        """The rules."""
        if isinstance(value, PortRules):
            return value
        try:
            return PortRules.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()
PORTS = PortsType()
SIZE = SizeType()
ASSIGNMENT = AssignmentType()
