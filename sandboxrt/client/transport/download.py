"""A file from a server, taken up where it broke off.

Source: protocol.md §3.3; RFC 9110 §14 (ranges), §13.1.5 (``If-Range``). That a download is taken up again is ours.
"""

from __future__ import annotations

from typing import Final

import attrs
import httpx
import trio

from sandboxrt.client.transport.failures import FailedAttempt
from sandboxrt.client.transport.requests import Requests, Tries
from sandboxrt.errors import SandboxConnectionError

__all__ = ["Download"]

_STALL_S: Final = 60.0
"""How long a file that has begun to come may stand still until the rest is asked for again."""


@attrs.define(eq=False)
class Download:
    """The content of one file, as far as it has come.

    It is asked for without a time limit: how long a file may take is its caller's to say.
    """

    _requests: Requests
    _url: str
    _path: str
    _pieces: list[bytes] = attrs.field(factory=list)
    _size: int = 0
    _etag: str = ""

    async def fetch(self) -> bytes | httpx.Response:
        """All of it, or the answer of a server that has no file for us.

        Raises:
            SandboxConnectionError: The connection broke, or stood still, again and again without any progress.
        """
        tries = Tries(self._requests.config.max_retries)
        while True:
            before = self._size
            try:
                refusal = await self._attempt()
            except FailedAttempt as failure:
                if self._size > before:
                    tries.progressed()
                await tries.after_failure(failure, repeatable=True)
                continue
            if refusal is None:
                return b"".join(self._pieces)
            if not await tries.after_answer(refusal):
                return refusal

    async def _attempt(self) -> httpx.Response | None:
        # Ranges count the bytes on the wire, which are the file's only if nobody compresses them.
        headers = {"accept-encoding": "identity"}
        if self._size:
            headers |= {"range": f"bytes={self._size}-", "if-range": self._etag}
        async with self._requests.attempt("GET", self._url, params={"path": self._path}, headers=headers) as answer:
            if not answer.is_success:
                await answer.aread()
                if self._size and answer.status_code == 416:
                    self._forget()  # it has become shorter: another file, to be had from its beginning
                    raise FailedAttempt(SandboxConnectionError(f"'{self._path}' was changed while it was read"))
                return answer
            if answer.status_code != 206:
                self._forget()
            self._etag = answer.headers.get("etag", "")
            pieces = aiter(answer.aiter_raw())
            while True:
                with trio.move_on_after(_STALL_S) as scope:
                    piece = await anext(pieces, None)
                if scope.cancelled_caught:
                    raise FailedAttempt(
                        SandboxConnectionError(f"Nothing more of '{self._path}' came for {_STALL_S:g} s")
                    )
                if piece is None:
                    return None
                self._pieces.append(piece)
                self._size += len(piece)

    def _forget(self) -> None:
        self._pieces, self._size = [], 0
