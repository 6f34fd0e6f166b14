"""The rows of the list of interop scenarios that are tested: what each is, and who can do it."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["ROWS", "Row"]

_NEWEST: Final = ("0.15.0",)


@attrs.frozen
class Row:
    """One scenario.

    Attributes:
        title: What it is.
        generations: The clients that have it; ``None`` = all.
        quirk: What official clients get wrong there.
        timeout_s: How long it may take.
    """

    title: str
    generations: tuple[str, ...] | None = None
    quirk: str = ""
    timeout_s: float = 60


ROWS: Final = {
    "1": Row("endpoint and key from the environment"),
    "2": Row("no key, wrong key"),
    "3": Row("snapshot from an image; an image that is missing"),
    "4": Row("create by id, name, neither, both"),
    "5": Row("create from an unknown snapshot"),
    "6": Row("create without waiting, then wait"),
    "7": Row("create that is not ready in time"),
    "8": Row("limits exceeded"),
    "9": Row("quotas of a key: sandboxes, processors, memory, storage"),
    "10": Row("rename, also onto an existing name"),
    "11": Row("TTLs: update, 0 disables, expires_at"),
    "12": Row("lifetimes really end: deletion, stop and then deletion; activity postpones", timeout_s=160),
    "13": Row("stop keeps files, start has them again; run on what is stopped"),
    "14": Row("list, get, delete, status; what is not there"),
    "15": Row("snapshot list: filter, limits, offsets"),
    "16": Row("capture: files are kept, /tmp and processes are not"),
    "16 tags": Row("capture with a tag; the tags of a name; sandboxes by name:tag", _NEWEST),
    "17": Row("run: output, exit code, env, cwd, shell, missing cwd"),
    "18": Row("run(wait=False): id, pid, chunks, result"),
    "19": Row("callbacks"),
    "20": Row("timeout takes the whole tree"),
    "21": Row("no time limit: beyond the default of 60 seconds", timeout_s=90),
    "22": Row(
        "kill, then reconnect for the exit code",
        quirk="`kill()` closes the socket at once, so the exit code needs a `reconnect()`",
    ),
    "23": Row("input"),
    "24": Row(
        "a reader without input",
        quirk="clients before 0.15.0 never close a command's input, so that `cat` runs into its timeout",
    ),
    "25": Row("TCP reset in the middle of the output"),
    "26": Row(
        "close 1011, 1012, 1000, 1001 before the exit",
        quirk="0.7.38 takes close 1000 and 1001 for the end of the output and has no result",
    ),
    "27": Row("another process takes over: offset, after the exit, too late"),
    "28": Row("idle timeout"),
    "29": Row("kill_on_disconnect"),
    "30": Row("terminal"),
    "31": Row("10 MiB of awkward output, byte-exact offsets"),
    "32a": Row("files: text, bytes, 50 MB, odd names, relative paths"),
    "32b": Row("files: missing, a folder, not permitted"),
    "33": Row(
        "three handshakes refused with 503",
        quirk="0.7.38 silently runs the command over HTTP instead, even when it may have started",
    ),
    "34": Row(
        "socket closed before `started`",
        quirk="0.7.38 gives up with an error although the command runs; 0.11.1 too, unless the close was a clean one",
    ),
    "35": Row("tunnels: a web server, twenty connections at once, nobody listens"),
    "35 much": Row("100 MB each way through a tunnel", timeout_s=120),
    "35 cut": Row(
        "a tunnel whose WebSocket is closed",
        quirk="connections that were open break, in silence; the next one opens another WebSocket",
    ),
    "36": Row("a tunnel's local port is in use"),
    "37": Row("service URL: requests, refresh, cookie, WebSocket"),
    "37 bad": Row("service URL: expired and wrong tokens, wrong ports, nobody there"),
    "38": Row("the context manager deletes, whatever happened"),
    "40 stat": Row("stat and read_range", _NEWEST),
    "40 search": Row("glob, ls, grep", _NEWEST),
    "40 download": Row("download link", _NEWEST),
    "40 sse": Row("execution over server-sent events", _NEWEST),
    "40 registries": Row(
        "named registries: a private image with a stored login; logins and hosts that are refused",
        quirk="0.7.38 has `registry_id` of `create_snapshot`, but nothing to make a registry with; 0.11.1 asks for them"
        " at `/api/api/v2/sandboxes` when its endpoint ends in `/api/v2/sandboxes`",
        timeout_s=90,
    ),
    "40 run_config": Row("run_config of a sandbox and of a command", _NEWEST),
}
