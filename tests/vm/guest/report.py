"""One line of JSON for each check, for whoever started them from outside."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable

import attrs

__all__ = ["PREFIX", "Report", "expect"]

PREFIX = "CHECK "
"""What a line of a report begins with; everything else that is printed is for people."""


def expect(holds: object, what: str) -> None:
    """Raise AssertionError with ``what`` was seen unless ``holds``: for figures that no plain assert would show."""
    if not holds:
        raise AssertionError(what)


@attrs.define
class Report:
    """The checks of one run in a guest; ``where`` says under what circumstances they are made."""

    where: str
    failed: int = 0

    def check(self, name: str, function: Callable[[], str]) -> bool:
        """Run one check, which returns the figure that it saw and raises what is wrong; whether it held."""
        began = time.monotonic()
        try:
            held, figure = True, function()
        except Exception as error:
            traceback.print_exc()
            held, figure = False, f"{type(error).__name__}: {error}"
            self.failed += 1
        told = {"name": f"{self.where}: {name}", "held": held, "figure": figure, "seconds": time.monotonic() - began}
        print(PREFIX + json.dumps(told), flush=True)
        return held
