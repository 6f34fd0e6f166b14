"""From what a user asked for to a started program: environment, user, folder, shell, and words for what was wrong."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Mapping
from typing import NoReturn, Protocol

from sandboxrt.engine.base import (
    Container,
    ExecFailedError,
    FileError,
    FileErrorKind,
    Identity,
    Process,
    ProcessSpec,
    SpawnFailedError,
)
from sandboxrt.host.command import StartError
from sandboxrt.host.users import User, UserNotFoundError, find_user
from sandboxrt.protocol.exec import COMMAND_TOO_LONG, ErrorFrame, Execute

__all__ = ["DEFAULT_PATH", "ImageSettings", "Launcher"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SHELLS = ("/bin/bash", "/bin/sh")
_ACCOUNT_FILE_BYTES = 1024**2
_ROOT = Identity()


class ImageSettings(Protocol):
    """How a snapshot's image says that commands run."""

    @property
    def env(self) -> Mapping[str, str]:
        """``Env``."""
        ...

    @property
    def user(self) -> str | None:
        """``User``."""
        ...

    @property
    def work_dir(self) -> str | None:
        """``WorkingDir``."""
        ...


class Launcher:
    """Starts programs in one container as its snapshot, its creator and the caller want it, in rising order.

    Args:
        container: Where.
        image: The snapshot's settings.
        env: The environment that the sandbox was created with.
        hostname: What ``HOSTNAME`` says.
        pids_limit: For the error message when it is reached.
    """

    def __init__(
        self,
        container: Container,
        image: ImageSettings,
        env: Mapping[str, str],
        hostname: str,
        pids_limit: int | None,
    ) -> None:
        self._container = container
        self._image = image
        self._env = dict(env)
        self._hostname = hostname
        self._pids_limit = pids_limit
        self._default_user: User | None = None
        self._shell = _SHELLS[0]

    async def start(self, request: Execute) -> Process:
        """Run ``shell -c command``.

        Raises:
            StartError: With a sentence that names what was wrong and what to do.
        """
        _check_text(request)
        user = await self._user(request.user)
        shell = request.shell or self._shell
        try:
            return await self._spawn(request, shell, user)
        except ExecFailedError as error:
            if error.stage != "exec" or error.errno != errno.ENOENT or request.shell or shell == _SHELLS[1]:
                self._explain(error, request, shell, user)
        except SpawnFailedError as error:
            self._explain_spawn(error)
        try:
            process = await self._spawn(request, _SHELLS[1], user)
        except ExecFailedError as error:
            self._explain(error, request, _SHELLS[1], user)
        except SpawnFailedError as error:
            self._explain_spawn(error)
        self._shell = _SHELLS[1]
        return process

    async def default_user(self) -> User:
        """Who commands and file operations run as when nobody says otherwise; looked up once.

        Raises:
            StartError: The image names a user that it does not have.
        """
        if self._default_user is None:
            self._default_user = await self._lookup(self._image.user)
        return self._default_user

    def tool_environment(self) -> dict[str, str]:
        """The environment of what the host itself runs in the container: the image's alone."""
        return {"PATH": DEFAULT_PATH, **self._image.env}

    async def _user(self, text: str | None) -> User:
        return await self._lookup(text) if text else await self.default_user()

    async def _lookup(self, text: str | None) -> User:
        passwd = await self._account_file("/etc/passwd")
        group = await self._account_file("/etc/group")
        try:
            return find_user(text, passwd, group)
        except UserNotFoundError as error:
            raise StartError(
                ErrorFrame(f"{error}; create it there, or pass user= as a name or id that exists")
            ) from error

    async def _account_file(self, path: str) -> str:
        try:
            file = await self._container.open_file(path, _ROOT)
        except FileError as error:
            if error.kind is FileErrorKind.NOT_FOUND:
                return ""
            raise StartError(ErrorFrame(f"{path} of the sandbox cannot be read: {error.kind.value}")) from error
        try:
            return (await file.read(0, _ACCOUNT_FILE_BYTES)).decode("utf-8", "replace")
        except FileError as error:
            raise StartError(ErrorFrame(f"{path} of the sandbox cannot be read: {error.kind.value}")) from error
        finally:
            await file.aclose()

    async def _spawn(self, request: Execute, shell: str, user: User) -> Process:
        return await self._container.spawn(
            ProcessSpec(
                argv=(shell, "-c", request.command),
                env=self._environment(request, user),
                cwd=self._cwd(request),
                identity=user.identity,
                stdin=not request.close_stdin,
                pty=(_cells(request.columns), _cells(request.rows)) if request.pty else None,
            )
        )

    def _environment(self, request: Execute, user: User) -> dict[str, str]:
        env = {"PATH": DEFAULT_PATH, "HOME": user.home, "HOSTNAME": self._hostname}
        if request.pty:
            env["TERM"] = "xterm"
        return {**env, **self._image.env, **self._env, **request.env}

    def _cwd(self, request: Execute) -> str:
        base = posixpath.join("/", self._image.work_dir or "/")
        return posixpath.join(base, request.cwd) if request.cwd else base

    def _explain(self, error: ExecFailedError, request: Execute, shell: str, user: User) -> NoReturn:
        if error.stage == "chdir":
            text = _explain_cwd(error.errno, self._cwd(request), user)
        elif error.stage == "identity":
            ids = user.identity
            text = f"The command cannot run as user '{user.name}' ({ids.uid}:{ids.gid}): {os.strerror(error.errno)}"
        elif error.stage == "terminal":
            text = f"The sandbox could not give the command a terminal: {os.strerror(error.errno)}; try pty=False"
        else:
            text = _explain_exec(error.errno, request, shell, user)
        raise StartError(ErrorFrame(text)) from error

    def _explain_spawn(self, error: SpawnFailedError) -> NoReturn:
        if error.errno == errno.EAGAIN:
            limit = "" if self._pids_limit is None else f" of {self._pids_limit}"
            text = (
                f"The sandbox's limit{limit} on processes is reached, so the command could not be started; "
                "end some of its processes or create the sandbox with a higher limit on pids"
            )
        else:
            text = f"The command could not be started in the sandbox: {os.strerror(error.errno)}"
        raise StartError(ErrorFrame(text)) from error


def _cells(number: int) -> int:
    return max(1, min(number, 65535))


def _check_text(request: Execute) -> None:
    for what, text in (("command", request.command), ("cwd", request.cwd or ""), ("shell", request.shell or "")):
        if "\0" in text:
            raise StartError(ErrorFrame(f"The {what} contains a NUL character, which no program can be given"))
    if request.shell is not None and not request.shell.startswith("/"):
        raise StartError(ErrorFrame(f"shell='{request.shell}' is not an absolute path; use one such as /bin/sh"))
    for name, value in request.env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise StartError(ErrorFrame(f"env has the variable {name!r}, whose name or value no program can be given"))


def _explain_cwd(number: int, cwd: str, user: User) -> str:
    if number == errno.ENOENT:
        return f"Working directory '{cwd}' does not exist in the sandbox; create it first or pass another cwd"
    if number == errno.ENOTDIR:
        return f"Working directory '{cwd}' is not a folder in the sandbox; pass another cwd"
    if number == errno.EACCES:
        return f"User '{user.name}' may not enter the working directory '{cwd}'; pass another cwd or user"
    return f"Working directory '{cwd}' cannot be entered: {os.strerror(number)}"


def _explain_exec(number: int, request: Execute, shell: str, user: User) -> str:
    if number == errno.ENOENT and request.shell:
        return (
            f"Shell '{shell}' does not exist in the sandbox; add it to the image, or leave shell out to get "
            "/bin/bash or /bin/sh"
        )
    if number == errno.ENOENT:
        return "The sandbox has neither /bin/bash nor /bin/sh; pass shell= with the path of a shell that it has"
    if number == errno.EACCES:
        return f"Shell '{shell}' may not be executed by user '{user.name}'; pass another shell or user"
    if number == errno.E2BIG:
        return COMMAND_TOO_LONG
    return f"Shell '{shell}' could not be started: {os.strerror(number)}"
