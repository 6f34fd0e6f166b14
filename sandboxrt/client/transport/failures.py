"""Why a request came to nothing, in words that name the cause and the way out, and whether it may be sent again.

Source: protocol.md §1.3; the words are ours.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import httpx
import trio

from sandboxrt.errors import SandboxConnectionError, SandboxConnectTimeoutError

__all__ = ["FailedAttempt", "broken", "unreached", "words_for_refusal"]

_PROBE_S: Final = 2.0
_TLS_ALERT: Final = "\\x15\\x03"
_NO_SUCH_NAME: Final = frozenset(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


class FailedAttempt(Exception):  # noqa: N818  it never leaves the transport
    """An attempt that failed.

    Attributes:
        error: What its caller is told when it was the last.
        harmless: Whether the server cannot have carried it out.
        stale: Whether it went over a connection that was kept, which says nothing of the server.
        final: Whether another attempt would end the same way.
    """

    def __init__(
        self, error: SandboxConnectionError, *, harmless: bool = False, stale: bool = False, final: bool = False
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.harmless = harmless
        self.stale = stale
        self.final = final

    def told(self, attempts: int) -> SandboxConnectionError:
        """The error, with the number of attempts where there were several."""
        if attempts > 1:
            self.error.args = (f"{self.error.args[0]} (after {attempts} attempts)", *self.error.args[1:])
        return self.error


async def unreached(error: httpx.HTTPError, url: str, *, known: bool) -> FailedAttempt:
    """No connection came about.

    Args:
        error: What httpx says.
        url: Where to.
        known: Whether that server was ever reached: it may be on its way back then, and waiting for it is right.
    """
    place = urlsplit(url).netloc.rpartition("@")[2]
    for cause in _causes(error):
        match cause:
            case ssl.SSLCertVerificationError():
                return _final(f"Cannot trust the server: {_text(error)} ({url})", error)
            case ssl.SSLError():
                return _final(
                    f"What listens at {place} does not speak TLS ({cause.reason or cause}):"
                    f" is it http://{place}? ({url})",
                    error,
                )
            case socket.gaierror() if cause.errno in _NO_SUCH_NAME:
                text = f"Cannot find the server: the name in {place!r} does not resolve ({cause.strerror}; {url})"
                return _unreached(text, error, final=not known)
            case OSError() if cause.errno == errno.ECONNREFUSED:
                return _unreached(words_for_refusal(url), error, final=not known)
    return _unreached(f"Failed to connect to server: {_text(error)} ({url})", error)


async def broken(error: httpx.HTTPError, url: str, *, sent: bool, stale: bool, known: bool) -> FailedAttempt:
    """The connection broke, somewhere between its first byte and the answer's last.

    Args:
        error: What httpx says.
        url: Where to.
        sent: Whether the request was sent as a whole.
        stale: Whether the connection had served another request.
        known: Whether that server ever gave an answer.
    """
    if not known and url.startswith("http://") and isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        place = urlsplit(url).netloc.rpartition("@")[2]
        if _TLS_ALERT in str(error) or await _speaks_tls(url):
            return _final(f"What listens at {place} speaks TLS: use https://{place} ({url})", error)
    if isinstance(error, httpx.WriteTimeout):
        told = SandboxConnectionError(f"The server takes no more of what is sent to {url}")
    else:
        told = SandboxConnectionError(f"The connection to {url} broke: {_text(error)}")
    failure = FailedAttempt(told, harmless=not sent, stale=stale)
    failure.__cause__ = error
    return failure


def words_for_refusal(url: str) -> str:
    """What to say when nothing listens where a URL points to."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return (
        f"Connection refused: nothing listens at {place}; is `sandboxrt serve` running there, and on that port? ({url})"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it comes from, those in groups too."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting.extend(cause.exceptions)
        waiting.extend(below for below in (cause.__cause__, cause.__context__) if below is not None)


def _final(text: str, error: BaseException) -> FailedAttempt:
    failure = FailedAttempt(SandboxConnectionError(text), final=True)
    failure.__cause__ = error
    return failure


def _unreached(text: str, error: BaseException, *, final: bool = False) -> FailedAttempt:
    failure = FailedAttempt(SandboxConnectTimeoutError(text), harmless=True, final=final)
    failure.__cause__ = error
    return failure


async def _speaks_tls(url: str) -> bool:
    """Whether a server that gave no answer to plain HTTP shakes hands for TLS."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with trio.move_on_after(_PROBE_S):
        try:
            stream = await trio.open_ssl_over_tcp_stream(
                parts.hostname or "", parts.port or 80, ssl_context=context, https_compatible=True
            )
        except (OSError, ValueError):
            return False
        try:
            await stream.do_handshake()
            return True
        except (trio.BrokenResourceError, OSError):
            return False
        finally:
            await trio.aclose_forcefully(stream)
    return False


def _text(error: BaseException) -> str:
    """What the error says, or else what the one beneath it says."""
    return next((str(cause) for cause in _causes(error) if str(cause)), type(error).__name__)
