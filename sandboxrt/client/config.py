"""Where a client's sandboxes run, out of its arguments and the environment.

Source: protocol.md §1.1, §1.2, §1.4.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import attrs

__all__ = ["RemoteConfig", "choose_mode", "remote_config"]

_ENDPOINT_VARIABLES = ("LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT")
_KEY_VARIABLES = ("LANGSMITH_API_KEY", "LANGCHAIN_API_KEY")
_DEFAULT_ENDPOINT = "https://api.smith.langchain.com"


@attrs.frozen(kw_only=True)
class RemoteConfig:
    """A server and how to speak to it.

    Attributes:
        base_url: Of its control plane, without a slash at its end.
        api_key: Sent as ``X-Api-Key``; never shown.
        headers: Sent with every request and WebSocket.
        timeout_s: For control calls; 0 or less = none.
        max_retries: How often a request is sent again; 0 = never.
    """

    base_url: str
    api_key: str | None = attrs.field(default=None, repr=False)
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    timeout_s: float = 10.0
    max_retries: int = 3

    @property
    def advice(self) -> str:
        """What to say when nothing of the API is at ``base_url``; empty where that looks like one."""
        if self.base_url.endswith("/sandboxes"):
            return ""
        parts = urlsplit(self.base_url)
        return (
            f"the endpoint {self.base_url} names no control plane, and a sandboxrt server's is at"
            f" {parts.scheme}://{parts.netloc}/v2/sandboxes"
        )

    @property
    def registries_base_url(self) -> str:
        """What the path of named registries follows: one prefix of the control plane's, whichever this client uses."""
        root = self.base_url.removesuffix("/v2/sandboxes").removesuffix("/api")
        return f"{root}/api/v2/sandboxes"


def choose_mode(
    mode: Literal["embedded", "remote"] | None, api_endpoint: str | None, api_key: str | None
) -> Literal["embedded", "remote"]:
    """What was asked for; an endpoint or a key, given or in the environment, mean a server.

    Raises:
        ValueError: ``mode`` is no mode.
    """
    if mode not in (None, "embedded", "remote"):
        raise ValueError(f"mode must be 'embedded' or 'remote', not {mode!r}")
    if mode is not None:
        return mode
    named = _given(api_endpoint) or _given(api_key) or _variable(_ENDPOINT_VARIABLES) or _variable(_KEY_VARIABLES)
    return "remote" if named else "embedded"


def remote_config(
    *,
    api_endpoint: str | None,
    api_key: str | None,
    headers: Mapping[str, str] | None,
    timeout: float,
    max_retries: int,
) -> RemoteConfig:
    """The server that the arguments name, or else the environment.

    An ``api_endpoint`` is the control plane's own URL, taken as it is; the environment names the API's root, as for
    other clients of it.

    Raises:
        ValueError: The endpoint is no HTTP URL, or a number cannot be.
    """
    if max_retries < 0:
        raise ValueError(f"max_retries must be 0 or more, not {max_retries}")
    explicit = _given(api_endpoint)
    base_url = explicit.rstrip("/") if explicit else _of_root(_variable(_ENDPOINT_VARIABLES) or _DEFAULT_ENDPOINT)
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"the endpoint must be like http://127.0.0.1:8080/v2/sandboxes, not {base_url!r}; "
            'pass mode="embedded" to run sandboxes on this machine'
        )
    return RemoteConfig(
        base_url=base_url,
        api_key=_given(api_key) or _variable(_KEY_VARIABLES),
        headers=dict(headers or {}),
        timeout_s=timeout,
        max_retries=max_retries,
    )


def _of_root(root: str) -> str:
    text = root.rstrip("/")
    if text.endswith("/v2/sandboxes"):
        return text  # whoever copied the control plane's own URL means that
    for suffix in ("/api/v1", "/api"):
        if text.endswith(suffix):
            text = text.removesuffix(suffix)
            break
    return text + "/api/v2/sandboxes"


def _given(text: str | None) -> str | None:
    return text.strip() if text is not None and text.strip() else None


def _variable(names: tuple[str, ...]) -> str | None:
    return next((found for name in names if (found := _given(os.environ.get(name))) is not None), None)
