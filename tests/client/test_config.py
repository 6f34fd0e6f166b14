"""Which server a client speaks to: arguments, then the environment."""

from __future__ import annotations

import math

import pytest

from sandboxrt import AsyncSandboxClient, SandboxClient
from sandboxrt.client.config import RemoteConfig, choose_mode, remote_config
from sandboxrt.client.transport.socket_settings import socket_limits

PUBLIC = "https://api.smith.langchain.com/api/v2/sandboxes"


def config(api_endpoint: str | None = None, api_key: str | None = None) -> RemoteConfig:
    return remote_config(api_endpoint=api_endpoint, api_key=api_key, headers=None, timeout=10, max_retries=3)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, PUBLIC),
        ({"LANGSMITH_ENDPOINT": "http://h:1"}, "http://h:1/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "http://h:1/"}, "http://h:1/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "http://h:1/api/"}, "http://h:1/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "http://h:1/api/v1"}, "http://h:1/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": " ", "LANGCHAIN_ENDPOINT": "http://h:2"}, "http://h:2/api/v2/sandboxes"),
        ({"LANGSMITH_ENDPOINT": "http://h:1", "LANGCHAIN_ENDPOINT": "http://h:2"}, "http://h:1/api/v2/sandboxes"),
    ],
)
def test_the_endpoint_of_the_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert config().base_url == expected


@pytest.mark.parametrize("given", ["http://h:8080", "http://h:8080/", "https://h/x/v2/sandboxes/"])
def test_an_explicit_endpoint_is_taken_as_it_is(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_ENDPOINT", "http://other")
    assert config(given).base_url == given.rstrip("/")


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert config().api_key is None
    monkeypatch.setenv("LANGCHAIN_API_KEY", "second")
    assert config().api_key == "second"
    monkeypatch.setenv("LANGSMITH_API_KEY", "first")
    assert config().api_key == "first"
    assert config(api_key="mine").api_key == "mine"
    assert config(api_key=" ").api_key == "first"
    assert "first" not in repr(config())


@pytest.mark.parametrize(
    ("mode", "variable", "expected"),
    [
        (None, None, "embedded"),
        (None, "LANGSMITH_API_KEY", "remote"),
        (None, "LANGCHAIN_API_KEY", "remote"),
        (None, "LANGSMITH_ENDPOINT", "remote"),
        (None, "LANGCHAIN_ENDPOINT", "remote"),
        ("embedded", "LANGSMITH_API_KEY", "embedded"),
        ("remote", None, "remote"),
    ],
)
def test_the_mode(mode: str | None, variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable:
        monkeypatch.setenv(variable, "http://h")
    assert choose_mode(mode, None, None) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"api_endpoint": "h:8080"}, "h:8080"),
        ({"api_endpoint": "ftp://h"}, "ftp://h"),
        ({"api_endpoint": "http://"}, "http:"),
        ({"mode": "local"}, "local"),
        ({"api_key": "k", "max_retries": -1}, "-1"),
        ({"api_key": "k", "state_dir": "/tmp"}, "state_dir"),
        ({"api_key": "k", "runtime": "runc"}, "runtime"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, object], named: str) -> None:
    for kind in (AsyncSandboxClient, SandboxClient):
        with pytest.raises(ValueError, match=named):
            kind(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "field", "expected"),
    [
        ({}, "open_s", 30.0),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_OPEN": "7"}, "open_s", 7.0),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_CLOSE": "2.5"}, "close_s", 2.5),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_PING_INTERVAL": " 5 "}, "ping_s", 5.0),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_PING": "6"}, "pong_s", 6.0),
        ({"LANGCHAIN_SANDBOX_WS_TIMEOUT_CONNECT_BUDGET": "8"}, "budget_s", 8.0),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_OPEN": " ", "LANGCHAIN_SANDBOX_WS_TIMEOUT_OPEN": "9"}, "open_s", 9.0),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_OPEN": "7", "LANGCHAIN_SANDBOX_WS_TIMEOUT_OPEN": "9"}, "open_s", 7.0),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_PING_INTERVAL": "0"}, "ping_s", math.inf),
        ({"LANGSMITH_SANDBOX_WS_TIMEOUT_PING": "-1"}, "pong_s", math.inf),
    ],
)
def test_limits_of_sockets(
    environment: dict[str, str], field: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert getattr(socket_limits(), field) == expected


@pytest.mark.parametrize("text", ["soon", "nan", "1s"])
def test_a_limit_that_is_no_number_is_told(
    text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LANGSMITH_SANDBOX_WS_TIMEOUT_CONNECT_BUDGET", text)
    assert socket_limits().budget_s == 120
    assert "LANGSMITH_SANDBOX_WS_TIMEOUT_CONNECT_BUDGET" in caplog.text and text in caplog.text


@pytest.mark.parametrize("root", ["http://h:8080", "http://h:8080/", "http://h:8080/api", "http://h:8080/api/v1"])
def test_the_environment_names_a_root(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGSMITH_ENDPOINT", root)
    assert config().base_url == "http://h:8080/api/v2/sandboxes"


@pytest.mark.parametrize("path", ["/v2/sandboxes", "/api/v2/sandboxes", "/api/v2/sandboxes/"])
def test_the_environment_names_the_control_plane_itself(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGCHAIN_ENDPOINT", f"http://h:8080{path}")
    assert config().base_url == f"http://h:8080{path}".rstrip("/")
