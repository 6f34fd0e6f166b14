"""Counters of a server in the text format of Prometheus. No label comes from a client, so their number is bounded.

Source: ours; the format is Prometheus's text exposition format 0.0.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

__all__ = ["Metrics"]

_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS: Final = frozenset("GET HEAD POST PUT PATCH DELETE OPTIONS WEBSOCKET".split())


class Metrics:
    """What a server has done.

    Args:
        gauges: Numbers to ask for when they are wanted: name and help to a function of label to value.
    """

    def __init__(self, gauges: Mapping[tuple[str, str, str], Callable[[], Mapping[str, int]]] | None = None) -> None:
        self.open: Counter[str] = Counter()
        """Requests under way, by kind (``http`` or ``websocket``)."""
        self._gauges = dict(gauges or {})
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._count: Counter[str] = Counter()

    def finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended; ``route`` is the server's own pattern, not the client's path."""
        self._requests[method if method in _METHODS else "OTHER", route, status] += 1
        if method == "WEBSOCKET":
            return
        self._count[route] += 1
        self._seconds[route] += seconds  # type: ignore[assignment]
        for bound in _BUCKETS:
            if seconds <= bound:
                self._buckets[route, bound] += 1

    def render(self) -> str:
        """Everything, as text."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# HELP sandboxrt_requests_total Requests and WebSockets that have ended."
        yield "# TYPE sandboxrt_requests_total counter"
        for (method, route, status), number in sorted(self._requests.items()):
            yield f'sandboxrt_requests_total{{method="{method}",route="{route}",status="{status}"}} {number}'
        yield "# HELP sandboxrt_request_seconds How long requests took, WebSockets not counted."
        yield "# TYPE sandboxrt_request_seconds histogram"
        for route, count in sorted(self._count.items()):
            for bound in _BUCKETS:
                yield f'sandboxrt_request_seconds_bucket{{route="{route}",le="{bound}"}} {self._buckets[route, bound]}'
            yield f'sandboxrt_request_seconds_bucket{{route="{route}",le="+Inf"}} {count}'
            yield f'sandboxrt_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}'
            yield f'sandboxrt_request_seconds_count{{route="{route}"}} {count}'
        yield "# HELP sandboxrt_requests_open Requests and WebSockets under way."
        yield "# TYPE sandboxrt_requests_open gauge"
        for kind in ("http", "websocket"):
            yield f'sandboxrt_requests_open{{kind="{kind}"}} {self.open[kind]}'
        for (name, label, text), ask in self._gauges.items():
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} gauge"
            for value, number in sorted(ask().items()):
                yield f'{name}{{{label}="{value}"}} {number}'
