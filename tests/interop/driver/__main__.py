"""Runs scenarios with the official client of this environment: a JSON line in for each, a JSON line out."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
import traceback
import warnings

warnings.simplefilter("ignore", FutureWarning)

import scenarios  # noqa: E402
from context import Context  # noqa: E402


def main() -> None:
    """Serve until the input ends."""
    generation = tuple(int(part) for part in sys.argv[1].split("."))
    for line in sys.stdin:
        order = json.loads(line)
        context = Context(generation, order["form"], order["endpoint"], order.get("key"), order.get("options", {}))
        started = time.monotonic()
        answer: dict[str, object] = {"ok": True}
        try:
            asyncio.run(asyncio.wait_for(scenarios.SCENARIOS[order["row"]](context), order.get("timeout", 60)))
        except BaseException as error:
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        gc.collect()
        answer |= {"notes": context.notes, "seconds": round(time.monotonic() - started, 3)}
        print(json.dumps(answer), flush=True)


main()
