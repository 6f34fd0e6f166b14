"""Command-session frames as the JSON text of a WebSocket: protocol.md §4, and one extension of our own.

The server's side (:func:`decode_client`) is strict: whatever is wrong with a frame is a :class:`WireError` that says
so in words for the peer and with the code to close with. The client's side (:func:`decode_server`) bears unknown
fields, unknown types and every key that has a default; it refuses only what it would have to invent.

The extension. Our client puts ``"ext": {"input_id": ...}`` into its first frame; a server that knows it answers
``"ext": {"input_offset": n}`` in ``started``, any other ignores it. Only then, both ways:

* ``input`` has an ``offset``; the server drops what it has taken already, sends ``{"type":"input_ack","offset":n}``,
  and says in each ``started`` how far it is, so that the client goes on from there after a lost connection;
* ``{"type":"signal","signum":n}`` sends a signal;
* ``exit`` has ``oom_killed`` and ``reason``; the error ``ReadOffsetUnavailable`` has ``stream`` and ``first_offset``;
* with ``"reuse": true`` in the same ``ext``, ``exit`` may have ``"reuse_s": n``: the socket stays open, and takes
  another ``execute`` or ``reconnect`` for so many seconds. What else the client sent for the command that is over is
  passed over until then. A server that will not, or not any more, closes the socket, before it has started anything.

A peer that did not ask sees none of it.

Source: protocol.md §4.1-4.4, interop-scenarios.md §3; the extension is ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sandboxrt.protocol.exec import (
    ClientFrame,
    CloseStdin,
    ErrorFrame,
    Execute,
    Exit,
    Input,
    InputAck,
    Kill,
    Output,
    Reconnect,
    Resize,
    ServerFrame,
    Signal,
    Started,
    StreamName,
)

__all__ = [
    "WireError",
    "decode_client",
    "decode_server",
    "encode_client",
    "encode_server",
    "parse_execute",
    "parse_reconnect",
]

DEFAULT_SHELL = "/bin/bash"
"""What clients send when their caller named no shell; an image without it gets ``/bin/sh`` then."""

_MAX_SECONDS = 10**9
_MAX_OFFSET = 2**63 - 1
_MAX_ID_CHARACTERS = 256
_MAX_SIGNAL = 64
_MAX_CELLS = 65535

_encode: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class WireError(Exception):
    """A frame that cannot be.

    Attributes:
        error_type: ``ProtocolError`` for what is no frame of this protocol (at this place), ``InvalidRequest`` for a
            frame with a value that cannot be.
        close_code: What to close the WebSocket with after the error was told.
    """

    def __init__(self, message: str, error_type: str = "ProtocolError", close_code: int = 1002) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.close_code = close_code

    @property
    def frame(self) -> ErrorFrame:
        """What to tell the peer."""
        return ErrorFrame(str(self), self.error_type)


# -- client to server --------------------------------------------------------------------------------------------------


def encode_client(frame: ClientFrame) -> str:
    """The text of a client's frame. :class:`Signal` and numbered :class:`Input` only to a server with the extension."""
    match frame:
        case Input(data, offset):
            text = f'{{"type":"input","data":{_encode(_whole(data))}'
            return text + ("}" if offset is None else f',"offset":{offset}}}')
        case Execute():
            return _encode(_execute_object(frame))
        case Reconnect():
            return _encode(
                {
                    "type": "reconnect",
                    "command_id": frame.command_id,
                    "stdout_offset": frame.stdout_offset,
                    "stderr_offset": frame.stderr_offset,
                    **({} if frame.input_id is None else {"ext": _ext_object(frame, frame.input_id)}),
                }
            )
        case CloseStdin():
            return '{"type":"close_stdin"}'
        case Kill():
            return '{"type":"kill"}'
        case Signal(signum):
            return f'{{"type":"signal","signum":{signum}}}'
        case Resize(columns, rows):
            return f'{{"type":"resize","cols":{columns},"rows":{rows}}}'


def decode_client(text: str) -> ClientFrame | None:
    """A client's frame out of its text; ``None`` for a type that is not known, which is to be ignored.

    Raises:
        WireError: It is no frame, or has a value that cannot be.
    """
    fields = _object(text)
    kind = fields.get("type")
    if not isinstance(kind, str):
        raise WireError("A frame needs a 'type', which is text")
    parser = _CLIENT_FRAMES.get(kind)
    return parser(fields) if parser is not None else None


def parse_execute(fields: Mapping[str, Any], timeout_field: str = "timeout_seconds") -> Execute:
    """The request to start a command out of a JSON object, as it is in the ``execute`` frame and in HTTP bodies.

    Args:
        fields: The object; what is not known in it is ignored.
        timeout_field: What the field of the wall-clock limit is called.

    Raises:
        WireError: A field cannot be what it is.
    """
    command = _text(fields, "command")
    if command is None:
        _refuse("'command' is missing")
    ext = _ext(fields)
    shell = _text(fields, "shell") or None
    if (shell == DEFAULT_SHELL and ext is None) or (ext is not None and ext.get("default_shell") is True):
        shell = None
    user, cwd, env = _run_config(fields)
    return Execute(
        command=command,
        command_id=_identifier(fields, "command_id"),
        timeout_s=_seconds(fields, timeout_field, 60),
        # 0 is the lifecycle's word for its own default, as is a missing field on the wire.
        idle_timeout_s=_seconds(fields, "idle_timeout_seconds", 0),
        ttl_s=_seconds(fields, "ttl_seconds", 0),
        kill_on_disconnect=_flag(fields, "kill_on_disconnect"),
        close_stdin=_flag(fields, "close_stdin"),
        shell=shell,
        env=env,
        cwd=cwd,
        user=user,
        pty=_flag(fields, "pty"),
        columns=_integer(fields, "cols", 80, 1, _MAX_CELLS),
        rows=_integer(fields, "rows", 24, 1, _MAX_CELLS),
        input_id=None if ext is None else _identifier(ext, "input_id"),
        reuse=_wants_reuse(ext),
    )


def _ext_object(frame: Execute | Reconnect, input_id: str) -> dict[str, Any]:
    return {"input_id": input_id, **({"reuse": True} if frame.reuse else {})}


def _execute_object(frame: Execute) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": "execute",
        "command": frame.command,
        "timeout_seconds": _number(frame.timeout_s),
        "shell": frame.shell or DEFAULT_SHELL,
        "idle_timeout_seconds": _number(frame.idle_timeout_s),
        "kill_on_disconnect": frame.kill_on_disconnect,
        "ttl_seconds": _number(frame.ttl_s),
    }
    fields.update(_surroundings(frame))
    if frame.pty:
        fields["pty"] = True
        if (frame.columns, frame.rows) != (80, 24):
            fields["cols"], fields["rows"] = frame.columns, frame.rows
    if frame.command_id is not None:
        fields["command_id"] = frame.command_id
    if frame.close_stdin:
        fields["close_stdin"] = True
    if frame.input_id is not None:
        fields["ext"] = _ext_object(frame, frame.input_id) | ({} if frame.shell else {"default_shell": True})
    return fields


def _surroundings(frame: Execute) -> dict[str, Any]:
    env, cwd = dict(frame.env), frame.cwd
    if not frame.user:
        return {name: value for name, value in (("env", env), ("cwd", cwd)) if value}
    # A run_config excludes env and cwd beside it.
    config = (("user", frame.user), ("work_dir", cwd), ("env_vars", env))
    return {"run_config": {name: value for name, value in config if value}}


def _run_config(fields: Mapping[str, Any]) -> tuple[str | None, str | None, dict[str, str]]:
    config = fields.get("run_config")
    cwd, env = _text(fields, "cwd"), _env(fields, "env")
    if config is None:
        return None, cwd or None, env
    if not isinstance(config, dict):
        _refuse("'run_config' must be an object")
    if cwd or env:
        _refuse("'run_config' excludes 'env' and 'cwd': put them into it as 'env_vars' and 'work_dir'")
    return _text(config, "user") or None, _text(config, "work_dir") or None, _env(config, "env_vars")


def parse_reconnect(fields: Mapping[str, Any]) -> Reconnect:
    """The request to attach to a command out of a JSON object, as :func:`parse_execute`.

    Raises:
        WireError: A field cannot be what it is.
    """
    command_id = _identifier(fields, "command_id")
    if command_id is None:
        _refuse("'command_id' is missing")
    ext = _ext(fields)
    return Reconnect(
        command_id,
        _integer(fields, "stdout_offset", 0, 0, _MAX_OFFSET),
        _integer(fields, "stderr_offset", 0, 0, _MAX_OFFSET),
        None if ext is None else _identifier(ext, "input_id"),
        _wants_reuse(ext),
    )


def _input(fields: Mapping[str, Any]) -> Input:
    data = fields.get("data", "")
    if not isinstance(data, str):
        _refuse("'data' must be text")
    offset = _integer(fields, "offset", -1, 0, _MAX_OFFSET)
    return Input(_whole(data), None if offset < 0 else offset)


def _signal(fields: Mapping[str, Any]) -> Signal:
    signum = _integer(fields, "signum", 0, 1, _MAX_SIGNAL)
    if not signum:
        _refuse("'signum' is missing")
    return Signal(signum)


def _resize(fields: Mapping[str, Any]) -> Resize:
    return Resize(_integer(fields, "cols", 80, 1, _MAX_CELLS), _integer(fields, "rows", 24, 1, _MAX_CELLS))


_CLIENT_FRAMES: Mapping[str, Callable[[Mapping[str, Any]], ClientFrame]] = {
    "execute": parse_execute,
    "reconnect": parse_reconnect,
    "input": _input,
    "close_stdin": lambda _: CloseStdin(),
    "kill": lambda _: Kill(),
    "signal": _signal,
    "resize": _resize,
}


# -- server to client --------------------------------------------------------------------------------------------------


def encode_server(frame: ServerFrame, *, extended: bool = False) -> str:
    """The text of a server's frame.

    Args:
        frame: The frame; :class:`InputAck` only with ``extended``.
        extended: Whether the client's first frame asked for the extension (it has an ``input_id``).
    """
    match frame:
        case Output(stream, data, offset):
            return f'{{"type":"{stream}","data":{_encode(data)},"offset":{offset}}}'
        case Started(command_id, pid, input_offset):
            fields: dict[str, Any] = {"type": "started", "command_id": command_id, "pid": pid}
            if extended and input_offset is not None:
                fields["ext"] = {"input_offset": input_offset}
            return _encode(fields)
        case InputAck(offset):
            if not extended:
                raise ValueError("a client that did not ask for acknowledged input cannot understand InputAck")
            return f'{{"type":"input_ack","offset":{offset}}}'
        case Exit():
            return f'{{"type":"exit","exit_code":{frame.exit_code}{_circumstances(frame) if extended else ""}}}'
        case ErrorFrame():
            fields = {"type": "error", "error": frame.error, "error_type": frame.error_type}
            if extended and frame.stream is not None:
                fields["stream"] = frame.stream
            if extended and frame.first_offset is not None:
                fields["first_offset"] = frame.first_offset
            return _encode(fields)


def _circumstances(frame: Exit) -> str:
    killed = ',"oom_killed":true' if frame.oom_killed else ""
    waits = "" if frame.reuse_s is None else f',"reuse_s":{_number(frame.reuse_s)}'
    return killed + waits + ("" if frame.reason is None else f',"reason":{_encode(frame.reason)}')


def decode_server(text: str) -> ServerFrame | None:
    """A server's frame out of its text; ``None`` for a type that is not known, which is to be ignored.

    Raises:
        WireError: It is no frame, or lacks what nothing can stand in for: an output's ``data``, the ``exit_code``.
    """
    fields = _object(text)
    match fields.get("type"):
        case "stdout":
            return _output("stdout", fields)
        case "stderr":
            return _output("stderr", fields)
        case "started":
            ext = fields.get("ext")
            command_id, pid = fields.get("command_id"), fields.get("pid")
            return Started(
                _whole(command_id) if isinstance(command_id, str) else "",
                _natural(pid) or 0,
                _natural(ext.get("input_offset")) if isinstance(ext, dict) else None,
            )
        case "input_ack":
            offset = _natural(fields.get("offset"))
            return None if offset is None else InputAck(offset)
        case "exit":
            exit_code = fields.get("exit_code")
            if isinstance(exit_code, float) and exit_code.is_integer():
                exit_code = int(exit_code)
            if not isinstance(exit_code, int) or isinstance(exit_code, bool) or abs(exit_code) > _MAX_OFFSET:
                raise WireError(f"The server reported an exit without a code: {_excerpt(text)}")
            reason = fields.get("reason")
            words = _whole(reason) if isinstance(reason, str) else None
            return Exit(exit_code, fields.get("oom_killed") is True, words, _span(fields.get("reuse_s")))
        case "error":
            return _error(fields)
        case str():
            return None
        case _:
            raise WireError(f"The server sent a frame without a type: {_excerpt(text)}")


def _output(stream: StreamName, fields: Mapping[str, Any]) -> Output:
    data, offset = fields.get("data"), fields.get("offset")
    number = 0 if offset is None else _natural(offset)
    if not isinstance(data, str) or number is None:
        raise WireError(f"The server sent a piece of {stream} without text or with an offset that cannot be")
    return Output(stream, _whole(data), number)


def _error(fields: Mapping[str, Any]) -> ErrorFrame:
    error, error_type, stream = fields.get("error"), fields.get("error_type"), fields.get("stream")
    return ErrorFrame(
        _whole(error) if isinstance(error, str) and error else "Unknown error",
        _whole(error_type) if isinstance(error_type, str) and error_type else "CommandError",
        "stdout" if stream == "stdout" else "stderr" if stream == "stderr" else None,
        _natural(fields.get("first_offset")),
    )


# -- values ------------------------------------------------------------------------------------------------------------


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise WireError(f"A frame must be a JSON object, not {_excerpt(text)}") from None
    if not isinstance(value, dict):
        raise WireError(f"A frame must be a JSON object, not {_excerpt(text)}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _excerpt(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:60] + "...")


def _refuse(message: str) -> NoReturn:
    raise WireError(message, "InvalidRequest")


def _whole(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        _refuse(f"'{name}' must be text")
    if _whole(value) != value:
        _refuse(f"'{name}' has half of a surrogate pair in it, which is no character")
    return value


def _identifier(fields: Mapping[str, Any], name: str) -> str | None:
    value = _text(fields, name)
    if value is not None and len(value) > _MAX_ID_CHARACTERS:
        _refuse(f"'{name}' is longer than {_MAX_ID_CHARACTERS} characters")
    return value or None


def _env(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _refuse(f"'{name}' must be an object of texts")
    for key in value:
        if _whole(key) != key:
            _refuse(f"'{name}' has a name with half of a surrogate pair in it, which is no character")
        _text(value, key)
    return value


def _ext(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    ext = fields.get("ext")
    return ext if isinstance(ext, dict) else None


def _wants_reuse(ext: Mapping[str, Any] | None) -> bool:
    return ext is not None and ext.get("reuse") is True and bool(ext.get("input_id"))


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        _refuse(f"'{name}' must be true or false")
    return value


def _seconds(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MAX_SECONDS <= value <= _MAX_SECONDS:
        _refuse(f"'{name}' must be a number of seconds, at most {_MAX_SECONDS}")
    return value


def _integer(fields: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _refuse(f"'{name}' must be a whole number from {least} to {most}")
    return value


def _natural(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer() and 0 <= value <= _MAX_OFFSET:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_OFFSET else None


def _span(value: object) -> float | None:
    """A length of time in seconds; ``None`` for what is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 < value <= _MAX_SECONDS else None  # type: ignore[operator, arg-type]


def _number(seconds: float) -> float:
    """Whole seconds as an integer, which is all that some servers read."""
    return int(seconds) if math.isfinite(seconds) and seconds == int(seconds) else seconds
