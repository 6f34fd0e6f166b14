r"""The programs that scripts of the fake engine can run, and the shell that runs them.

The vocabulary, each with the meaning that it has in a real container::

    echo [-n] WORD...      printf FORMAT [WORD...]     print; \n \t \r \\ \NNN (octal), %s, %d, %%
    echo WORD >&2                                      print to standard error
    sleep SECONDS                                      let (virtual) time pass
    cat [FILE...]          read NAME                   echo standard input or files; read a line
    COMMAND &              ( COMMANDS ) &              a background child that holds the pipes
    trap '' TERM           kill -NAME $$               ignore a signal; die by one
    exit [N]               true  false  :              end with a status
    head -c BYTES /dev/zero                            flood
    find -H DIR ...        command -v NAME             look for files, as the host does
    pwd  cd DIR  export NAME=VALUE  printenv NAME  id -u  tty  stty size  rm FILE  mkdir -p DIR  wait  exec COMMAND

Of its own: ``out-of-memory`` is killed as the kernel kills a process that takes too much, and ``listen PORT`` says so
and then sends back what comes over each connection (``listen PORT reverse``: backwards, once it has ended; ``mute``:
nothing, nor does it read; ``flood``: zeros without an end; ``http``: one answer, which repeats the request;
``early``: one answer, with most of the request unread; ``upgrade``: an upgrade to ``echo``).
"""

from __future__ import annotations

import math
import posixpath
import re
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import attrs
import trio

from sandboxrt.engine.base import ExitStatus, FileError, FileErrorKind, Identity
from sandboxrt.testing.filesystem import File, Folder, MemoryFileSystem
from sandboxrt.testing.find import find
from sandboxrt.testing.pipes import Pipe, Terminal
from sandboxrt.testing.ports import HABITS, Ports
from sandboxrt.testing.script import AndOr, For, Group, Item, Node, Redirect, ScriptError, Simple, While, Word, parse

__all__ = ["Shell", "Sink", "Surroundings", "Task", "shell_body"]

_MAX_STEPS = 1_000_000
_NOT_FOUND = 127
_SIGNALS = {"HUP": 1, "INT": 2, "KILL": 9, "TERM": 15}
_REASONS = {
    FileErrorKind.NOT_FOUND: "No such file or directory",
    FileErrorKind.IS_DIRECTORY: "Is a directory",
    FileErrorKind.NOT_A_DIRECTORY: "Not a directory",
    FileErrorKind.PERMISSION: "Permission denied",
    FileErrorKind.NO_SPACE: "No space left on device",
    FileErrorKind.NAME_TOO_LONG: "File name too long",
    FileErrorKind.LOOP: "Too many levels of symbolic links",
}

Sink = Callable[[bytes], Awaitable[None]]


class _ExitError(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class Surroundings(Protocol):
    """What a shell needs from the fake process that it runs in."""

    @property
    def files(self) -> MemoryFileSystem:
        """The container's files."""
        ...

    @property
    def terminal(self) -> Terminal | None:
        """The process's terminal, if it has one."""
        ...

    @property
    def ports(self) -> Ports:
        """The container's ports."""
        ...

    def fork(self, shell: Shell) -> bool:
        """Run a copy of a shell as a background child; ``False`` when no more processes may be made."""
        ...

    def out_of_memory(self, task: Task) -> None:
        """The kernel kills a task for lack of memory."""
        ...


@attrs.define(eq=False)
class Task:
    """A fake process's id, fate and signal settings."""

    pid: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ignored: set[int] = attrs.field(factory=set)
    died_by: int | None = None
    status: ExitStatus | None = None

    def signal(self, signum: int) -> None:
        """Deliver a signal: the task dies by it unless it ignores it."""
        if signum == signal.SIGKILL or signum not in self.ignored:
            self.died_by = self.died_by or signum
            self.scope.cancel()


@attrs.define(eq=False)
class Shell:
    """One shell at work: its variables, folder, standard streams and body."""

    task: Task
    around: Surroundings
    env: dict[str, str]
    cwd: str
    identity: Identity
    stdin: Pipe | None
    stdout: Sink
    stderr: Sink
    body: tuple[Item, ...]
    local: dict[str, str] = attrs.field(factory=dict)
    last: int = 0
    steps: int = 0

    async def run(self) -> int:
        """Run the body; returns the exit code."""
        try:
            await self._items(self.body)
        except _ExitError as exit_:
            return exit_.code
        except BrokenPipeError:
            self.task.died_by = int(signal.SIGPIPE)
        return self.last

    async def _items(self, items: tuple[Item, ...]) -> None:
        for item in items:
            if not item.background:
                await self._and_or(item.command)
                continue
            child = attrs.evolve(
                self,
                task=Task(0, ignored=set(self.task.ignored)),
                env=dict(self.env),
                local=dict(self.local),
                stdin=None,
                body=(Item(item.command, False),),
            )
            self.last = 0
            if not self.around.fork(child):
                await self.stderr(b"sh: Cannot fork\n")
                raise _ExitError(2)

    async def _and_or(self, command: AndOr) -> None:
        await self._node(command.first)
        for operator, node in command.rest:
            if (operator == "&&") == (self.last == 0):
                await self._node(node)

    async def _node(self, node: Node) -> None:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise RuntimeError("a script of the fake engine ran a million commands without an end")
        await trio.lowlevel.checkpoint()
        if isinstance(node, Simple):
            await self._simple(node)
        elif isinstance(node, Group):
            # A copy in the same task: what it changes stays inside, what it prints goes the same way.
            inner = attrs.evolve(self, env=dict(self.env), local=dict(self.local), body=node.body)
            if await inner._redirect(node.redirects):
                self.last = await inner.run()
        elif isinstance(node, While):
            while await self._holds(node.condition):
                await self._items(node.body)
            self.last = 0
        else:
            await self._for(node)

    async def _holds(self, condition: tuple[Item, ...]) -> bool:
        await self._items(condition)
        return self.last == 0

    async def _for(self, node: For) -> None:
        for word in node.words:
            self.local[node.name] = self._text(word)
            await self._items(node.body)

    async def _simple(self, node: Simple) -> None:
        assignments = {name: self._text(word) for name, word in node.assignments}
        words = [self._text(word) for word in node.words]
        if not words and not node.redirects:
            self.local.update(assignments)
            self.last = 0
            return
        inner = attrs.evolve(self, env={**self.env, **assignments})
        if not await inner._redirect(node.redirects):
            self.last = 2
            return
        if words[:1] == ["exec"]:
            words = words[1:]
            await inner._program(words)
            raise _ExitError(inner.last)
        await inner._program(words or [":"])
        self.last, self.cwd = inner.last, inner.cwd
        self.local = inner.local
        self.steps = inner.steps
        if words[:1] == ["export"]:
            self.env = inner.env

    async def _program(self, words: list[str]) -> None:
        program = _PROGRAMS.get(posixpath.basename(words[0]))
        if program is None:
            await self.stderr(f"sh: {words[0]}: not found\n".encode())
            self.last = 127
            return
        try:
            self.last = await program(self, words[1:]) or 0
        except FileError as error:
            reason = _REASONS.get(error.kind, "Input/output error")
            await self.stderr(f"{words[0]}: {error.path}: {reason}\n".encode())
            self.last = 1

    async def _redirect(self, redirects: tuple[Redirect, ...]) -> bool:
        for redirect in redirects:
            target = self._text(redirect.target)
            try:
                if redirect.operator == "<":
                    self.stdin = self._open(target)
                else:
                    self._set_sink(redirect, target)
            except FileError as error:
                await self.stderr(f"sh: {target}: {_REASONS.get(error.kind, 'Input/output error')}\n".encode())
                return False
        return True

    def _set_sink(self, redirect: Redirect, target: str) -> None:
        if redirect.operator == ">&":
            sink = self.stderr if target == "2" else self.stdout
        else:
            sink = self._file_sink(self.path(target), append=redirect.operator == ">>")
        if redirect.descriptor == 2:
            self.stderr = sink
        else:
            self.stdout = sink

    def _file_sink(self, path: str, *, append: bool) -> Sink:
        self.around.files.write(path, b"", self.identity, append=append)

        async def write(data: bytes) -> None:
            self.around.files.write(path, data, self.identity, append=True)
            await trio.lowlevel.checkpoint()

        return write

    def _open(self, target: str) -> Pipe:
        pipe = Pipe()
        pipe.hold()
        pipe._data += self.content(target)
        pipe.release()
        return pipe

    def content(self, name: str) -> bytes:
        """What a file holds."""
        if name == "/dev/null":
            return b""
        return bytes(self.around.files.read(self.path(name), self.identity).data)

    def path(self, name: str) -> str:
        """The absolute path of ``name``."""
        return posixpath.join(self.cwd, name)

    def variables(self) -> Mapping[str, str]:
        """Everything that ``$`` can mean."""
        return {**self.env, **self.local, "$": str(self.task.pid), "?": str(self.last)}

    def _text(self, word: Word) -> str:
        variables = self.variables()
        return "".join(variables.get(text, "") if variable else text for variable, text in word.pieces)


async def _echo(shell: Shell, words: list[str]) -> int:
    newline = "\n"
    if words[:1] == ["-n"]:
        words, newline = words[1:], ""
    await shell.stdout((" ".join(words) + newline).encode())
    return 0


_ESCAPE = re.compile(r"\\([0-7]{1,3}|[ntr\\abfv])|%([sd%])")
_ESCAPED = {"n": b"\n", "t": b"\t", "r": b"\r", "\\": b"\\", "a": b"\a", "b": b"\b", "f": b"\f", "v": b"\v"}


async def _printf(shell: Shell, words: list[str]) -> int:
    rest = list(words[1:])
    output = bytearray()
    at = 0
    for match in _ESCAPE.finditer(words[0]):
        output += words[0][at : match.start()].encode()
        at = match.end()
        escape, conversion = match.groups()
        if escape is not None:
            output += _ESCAPED.get(escape) or bytes([int(escape, 8) & 0xFF])
        else:
            output += b"%" if conversion == "%" else (rest.pop(0) if rest else "").encode()
    output += words[0][at:].encode()
    await shell.stdout(bytes(output))
    return 0


async def _sleep(shell: Shell, words: list[str]) -> int:
    await trio.sleep(float(words[0]))
    return 0


async def _cat(shell: Shell, words: list[str]) -> int:
    for name in words:
        await shell.stdout(shell.content(name))
    if words or shell.stdin is None:
        return 0
    while piece := await shell.stdin.read(64 * 1024):
        await shell.stdout(piece)
    return 0


async def _read(shell: Shell, words: list[str]) -> int:
    words = [word for word in words if word != "-r"]
    line = await shell.stdin.read_line() if shell.stdin is not None else b""
    if words:
        shell.local[words[0]] = line.decode("utf-8", "replace").removesuffix("\n")
    return 0 if line.endswith(b"\n") else 1


async def _trap(shell: Shell, words: list[str]) -> int:
    for name in words[1:]:
        number = _SIGNALS[name.removeprefix("SIG")]
        shell.task.ignored.add(number) if words[0] == "" else shell.task.ignored.discard(number)
    return 0


async def _kill(shell: Shell, words: list[str]) -> int:
    name = words[0].removeprefix("-").removeprefix("SIG")
    number = int(name) if name.isdecimal() else _SIGNALS[name]
    if words[1] != str(shell.task.pid):
        await shell.stderr(b"kill: the fake engine's processes can only kill themselves\n")
        return 1
    shell.task.signal(number)
    await trio.lowlevel.checkpoint()
    return 0


async def _head(shell: Shell, words: list[str]) -> int:
    if len(words) != 3 or words[0] != "-c":
        raise ScriptError("head is only known as: head -c BYTES FILE")
    size = int(words[1])
    data = bytes(min(size, 64 * 1024)) if words[2] == "/dev/zero" else shell.content(words[2])[:size]
    while size > 0 and data:
        await shell.stdout(data[:size])
        size = size - len(data) if words[2] == "/dev/zero" else 0
    return 0


async def _cd(shell: Shell, words: list[str]) -> int:
    target = posixpath.normpath(shell.path(words[0] if words else shell.env.get("HOME", "/")))
    shell.around.files.enter(target, shell.identity)
    shell.cwd = target
    return 0


async def _export(shell: Shell, words: list[str]) -> int:
    for word in words:
        name, given, value = word.partition("=")
        shell.env[name] = value if given else shell.local.get(name, "")
    return 0


async def _printenv(shell: Shell, words: list[str]) -> int:
    value = shell.env.get(words[0])
    if value is None:
        return 1
    await shell.stdout(f"{value}\n".encode())
    return 0


async def _tty(shell: Shell, words: list[str]) -> int:
    await shell.stdout(b"/dev/pts/0\n" if shell.around.terminal else b"not a tty\n")
    return 0 if shell.around.terminal else 1


async def _stty(shell: Shell, words: list[str]) -> int:
    terminal = shell.around.terminal
    if terminal is None:
        await shell.stderr(b"stty: 'standard input': Inappropriate ioctl for device\n")
        return 1
    await shell.stdout(b"%d %d\n" % (terminal.size[1], terminal.size[0]))
    return 0


async def _rm(shell: Shell, words: list[str]) -> int:
    for name in words:
        if name != "-f":
            shell.around.files.remove(shell.path(name), shell.identity)
    return 0


async def _mkdir(shell: Shell, words: list[str]) -> int:
    for name in words:
        if name != "-p":
            shell.around.files.make_folder(shell.path(name), shell.identity)
    return 0


async def _chmod(shell: Shell, words: list[str]) -> int:
    entry = shell.around.files.look_up(shell.path(words[1]), shell.identity)
    if isinstance(entry, File | Folder):
        entry.mode = int(words[0], 8)
    return 0


async def _exit(shell: Shell, words: list[str]) -> int:
    raise _ExitError(int(words[0]) & 0xFF if words else shell.last)


async def _out_of_memory(shell: Shell, words: list[str]) -> int:
    shell.around.out_of_memory(shell.task)
    await trio.sleep(math.inf)
    return 0


async def _listen(shell: Shell, words: list[str]) -> int:
    port = int(words[0])
    try:
        async with shell.around.ports.listening(port, HABITS[words[1] if words[1:] else "echo"]):
            await shell.stdout(b"listening\n")
            await trio.sleep_forever()
    except OSError:
        await shell.stderr(f"listen: port {port} is in use\n".encode())
    return 1


async def _command(shell: Shell, words: list[str]) -> int:
    known = words[:1] == ["-v"] and len(words) == 2 and words[1] in {*_PROGRAMS, "grep"}
    return 0 if known else _NOT_FOUND


async def _find(shell: Shell, words: list[str]) -> int:
    for line in find(shell.around.files, shell.cwd, shell.identity, words):
        await shell.stdout(line)
    return 0


def _print_line(text: Callable[[Shell], str]) -> Callable[[Shell, list[str]], Awaitable[int]]:
    async def program(shell: Shell, words: list[str]) -> int:
        await shell.stdout(f"{text(shell)}\n".encode())
        return 0

    return program


def _status(code: int) -> Callable[[Shell, list[str]], Awaitable[int]]:
    async def program(shell: Shell, words: list[str]) -> int:
        return code

    return program


_PROGRAMS: Mapping[str, Callable[[Shell, list[str]], Awaitable[int]]] = {
    ":": _status(0),
    "cat": _cat,
    "cd": _cd,
    "chmod": _chmod,
    "echo": _echo,
    "command": _command,
    "exit": _exit,
    "export": _export,
    "false": _status(1),
    "find": _find,
    "head": _head,
    "id": _print_line(lambda shell: str(shell.identity.uid)),
    "kill": _kill,
    "listen": _listen,
    "mkdir": _mkdir,
    "out-of-memory": _out_of_memory,
    "printenv": _printenv,
    "printf": _printf,
    "pwd": _print_line(lambda shell: shell.cwd),
    "read": _read,
    "rm": _rm,
    "sleep": _sleep,
    "stty": _stty,
    "trap": _trap,
    "true": _status(0),
    "tty": _tty,
}


def shell_body(text: str) -> tuple[Item, ...]:
    """The commands of a script; one that prints the error where it is none, as a shell would."""
    try:
        return parse(text)
    except ScriptError as error:
        words = tuple(Word(((False, part),)) for part in ("echo", f"sh: syntax error: {error}"))
        complain = Simple(words, (), (Redirect(1, ">&", Word(((False, "2"),))),))
        leave = Simple((Word(((False, "exit"),)), Word(((False, "2"),))), (), ())
        return (Item(AndOr(complain, ()), False), Item(AndOr(leave, ()), False))
