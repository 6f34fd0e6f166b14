"""A list that a server gives in pages, taken as a whole, from servers that never come to an end, too.

Source: protocol.md §2.4 for the fields; the bounds are ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from sandboxrt.errors import SandboxAPIError
from sandboxrt.protocol.rest import SandboxInfo
from sandboxrt.protocol.rest_wire import sandbox_from_json

__all__ = ["all_sandboxes"]

_MAX_PAGES: Final = 2000
"""A hundred thousand sandboxes, fifty a page."""
_MAX_REPEATED: Final = 3


async def all_sandboxes(ask: Callable[[int], Awaitable[object]]) -> list[SandboxInfo]:
    """Every sandbox once, in the order in which the server gives them.

    What is created or deleted meanwhile moves the others between pages: what comes twice counts once.

    Args:
        ask: Gets the page that begins at an offset.

    Raises:
        SandboxAPIError: There are more than 2,000 pages, or three in a row have nothing new: the server's paging does
            not come to an end.
    """
    found: dict[str, SandboxInfo] = {}
    offset = repeated = 0
    for _ in range(_MAX_PAGES):
        body = await ask(offset)
        page = body.get("sandboxes") if isinstance(body, dict) else None
        known = len(found)
        for item in page or ():
            info = sandbox_from_json(item)
            found.setdefault(info.id or info.name, info)
        following = body.get("offset") if isinstance(body, dict) else None
        if not page or not isinstance(following, int) or following <= offset:
            return list(found.values())
        offset = following
        repeated = repeated + 1 if len(found) == known else 0
        if repeated == _MAX_REPEATED:
            raise SandboxAPIError(
                f"The server's list of sandboxes repeats itself: {repeated} pages in a row, up to offset {offset}, had"
                " nothing new"
            )
    raise SandboxAPIError(
        f"The server's list of sandboxes does not end: after {_MAX_PAGES} pages with {len(found)} sandboxes"
        " there are more"
    )
