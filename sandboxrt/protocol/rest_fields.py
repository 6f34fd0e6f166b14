"""The fields of control-plane requests: their types, their ranges, and every fault of a body told at once.

Source: protocol.md §2.3 (rules) and §2.9 (the shape of faults).
"""

from __future__ import annotations

import re
from typing import Any, NewType, TypeVar

import attrs
import cattrs

from sandboxrt.errors import ValidationError

__all__ = [
    "FOREIGN_TRANSPORTS",
    "Cpus",
    "Disk",
    "FilePath",
    "Image",
    "Labels",
    "LinkSeconds",
    "Memory",
    "Millicores",
    "Name",
    "Port",
    "RunConfigBody",
    "Seconds",
    "SnapshotName",
    "Tag",
    "Text",
    "Ttl",
    "Variables",
    "fault",
    "invalid",
    "structure",
]

T = TypeVar("T")
Fault = tuple[tuple[str | int, ...], str]

_MAX_INT = 2**53
_SNAPSHOT_NAME = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_LABELS, _MAX_LABEL_KEY, _MAX_LABEL_VALUE = 128, 256, 4096
_MAX_TIMEOUT_S = 3600
_MAX_LINK_S = 86400
_MAX_FILE_PATH = 2048
_MIN_MEMORY, _MIN_DISK = 16 * 1024**2, 16 * 1024**2
FOREIGN_TRANSPORTS = frozenset(
    "atomic containers-storage dir docker-archive docker-daemon oci oci-archive ostree sif tarball".split()
)
"""What image tools read from the machine that they run on: a server's files are not its callers'."""

Text = NewType("Text", str)
Name = NewType("Name", str)
SnapshotName = NewType("SnapshotName", str)
Tag = NewType("Tag", str)
Ttl = NewType("Ttl", int)
Seconds = NewType("Seconds", float)
Cpus = NewType("Cpus", float)
Millicores = NewType("Millicores", int)
Memory = NewType("Memory", int)
Disk = NewType("Disk", int)
Labels = NewType("Labels", dict[str, str])
Variables = NewType("Variables", dict[str, str])
Image = NewType("Image", str)
Port = NewType("Port", int)
LinkSeconds = NewType("LinkSeconds", int)
FilePath = NewType("FilePath", str)


@attrs.frozen(kw_only=True)
class RunConfigBody:
    """``run_config``, wherever it stands."""

    user: Text | None = None
    work_dir: Text | None = None
    env_vars: Variables | None = None


def invalid(message: str, *loc: str) -> ValidationError:
    """A fault of one field, in the shape that official servers and clients use; ``loc`` as pydantic writes it."""
    return fault([(loc or ("body",), message)])


def fault(faults: list[Fault]) -> ValidationError:
    """The error for some faults; a place that names none of body, query and header is in the body."""
    details = []
    for loc, text in faults:
        place = loc if loc[0] in ("body", "query", "header") else ("body", *loc)
        # Clients show the messages alone, so each names its field.
        name = ".".join(map(str, place[1:])) or "The body"
        details.append({"loc": list(place), "msg": f"{name} {text}", "type": "value_error"})
    message = "; ".join(str(detail["msg"]) for detail in details)
    field = details[0]["loc"][-1]
    return ValidationError(message, None if field == "body" else str(field), details, "value_error")


def structure(kind: type[T], body: object, unsupported: tuple[str, ...]) -> T:
    """A parsed JSON body as one of the classes of fields; nulls are as good as absent, other fields are passed over.

    Raises:
        ValidationError: It does not fit, or has one of the ``unsupported`` fields; ``details`` has every fault.
    """
    if not isinstance(body, dict):
        raise invalid("must be a JSON object", "body")
    given = {name: value for name, value in body.items() if value is not None}
    faults: list[Fault] = [
        (("body", name), "is not supported by this server; leave it out")
        for name in unsupported
        if given.get(name) not in (None, False, {}, [], "")
    ]
    try:
        found = _converter.structure(given, kind)
    except cattrs.BaseValidationError as error:
        faults += _faults(error, ("body",))
        raise fault(faults) from None
    if faults:
        raise fault(faults)
    return found


def _faults(error: BaseException, loc: tuple[str | int, ...]) -> list[Fault]:
    if isinstance(error, cattrs.ClassValidationError):
        found: list[Fault] = []
        grouped, others = error.group_exceptions()
        for inner, note in grouped:
            found += _faults(inner, (*loc, note.name))
        for inner in others:
            found += _faults(inner, loc)
        return found
    if isinstance(error, KeyError):
        return [(loc, "is required")]
    return [(loc, str(error) or type(error).__name__)]


# -- types and ranges ------------------------------------------------------------------------------------------------


def _text(value: object, longest: int = 65536) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {_kind(value)}")
    if len(value) > longest:
        raise ValueError(f"must not be longer than {longest} characters")
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("must not contain NUL or half a surrogate pair")
    return value


def _name(value: object) -> str:
    if not _text(value, 512):
        raise ValueError("must not be empty")
    return str(value)


def _file_path(value: object) -> str:
    """It stands in the link twice, escaped, and links have to fit into a line."""
    if not _text(value, _MAX_FILE_PATH):
        raise ValueError("must not be empty")
    return str(value)


def _snapshot_name(value: object) -> str:
    text = _name(value)
    if not _SNAPSHOT_NAME.fullmatch(text) or text.startswith("system/") or text == "host":
        raise ValueError(
            "must have 1 to 255 letters, digits, '.', '_' or '-', in parts that '/' separates, and neither be 'host' "
            "nor begin with 'system/'"
        )
    return text


def _tag(value: object) -> str:
    text = _name(value)
    if not _TAG.fullmatch(text):
        raise ValueError("must have 1 to 128 letters, digits, '.', '_' or '-', beginning with none of the latter two")
    return text


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_kind(value)}")
    return value


def _int(value: object, low: int, high: int = _MAX_INT) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be an integer, not {_kind(value)}")
    if not low <= value <= high:
        raise ValueError(f"must be between {low} and {high}")
    return value


def _float(value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f"must be a number, not {_kind(value)}")
    if not low <= value <= high:
        raise ValueError(f"must be between {low:g} and {high:g}")
    return value


def _ttl(value: object) -> int:
    seconds = _int(value, 0, 10 * 366 * 86400)
    if seconds % 60:
        raise ValueError("must be 0 or a multiple of 60 seconds")
    return seconds


def _strings(value: object, longest_key: int, longest_value: int, most: int) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object, not {_kind(value)}")
    if len(value) > most:
        raise ValueError(f"must not have more than {most} entries")
    for key, text in value.items():
        try:
            _text(key, longest_key)
            _text(text, longest_value)
        except ValueError as error:
            raise ValueError(f"entry {key[:64]!r} {error}") from None
        if not key:
            raise ValueError("must not have an empty name")
    return value


def _variables(value: object) -> dict[str, str]:
    found = _strings(value, 4096, 128 * 1024 - 4097, 4096)
    for key in found:
        if "=" in key:
            raise ValueError(f"entry {key[:64]!r} must not have '=' in its name")
    return found


def _image(value: object) -> str:
    text = _name(value)
    transport, colon, rest = text.partition(":")
    if colon and not (transport == "docker" and rest.startswith("//")) and transport in FOREIGN_TRANSPORTS:
        raise ValueError(f"must be an image of a registry; '{transport}:' would be a file of the server")
    return text


def _kind(value: object) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True)
    for kind, check in (
        (bool, _bool),
        (Text, _text),
        (Name, _name),
        (SnapshotName, _snapshot_name),
        (Tag, _tag),
        (Ttl, _ttl),
        (Seconds, lambda value: _float(value, 0, _MAX_TIMEOUT_S)),
        (Cpus, lambda value: _float(value, 0.01, 4096)),
        (Millicores, lambda value: _int(value, 10, 4096_000)),
        (Memory, lambda value: _int(value, _MIN_MEMORY)),
        (Disk, lambda value: _int(value, _MIN_DISK)),
        (Labels, lambda value: _strings(value, _MAX_LABEL_KEY, _MAX_LABEL_VALUE, _MAX_LABELS)),
        (Variables, _variables),
        (Image, _image),
        (Port, lambda value: _int(value, 1, 65535)),
        (LinkSeconds, lambda value: _int(value, 1, _MAX_LINK_S)),
        (FilePath, _file_path),
    ):
        converter.register_structure_hook(kind, lambda value, _, check=check: check(value))
    objects = converter.get_structure_hook(RunConfigBody)

    def run_config(value: Any, kind: type[RunConfigBody]) -> RunConfigBody:
        if not isinstance(value, dict):
            raise ValueError(f"must be an object, not {_kind(value)}")
        return objects({k: v for k, v in value.items() if v is not None}, kind)  # type: ignore[no-any-return]

    converter.register_structure_hook(RunConfigBody, run_config)
    return converter


_converter = _make_converter()
