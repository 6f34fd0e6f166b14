"""A server from its settings to its end: state folder, host, application, sockets, and the order in which they stop.

When it is told to stop it accepts no more connections, ends streams in the way after which clients come back, gives
what is under way a bounded while, and then stops the sandboxes; the next start on the same folder has them again.

Source: protocol.md §4.5 (how streams end); the rest is ours.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

from sandboxrt.actors import raising_plainly
from sandboxrt.engine.base import Engine
from sandboxrt.errors import ResourceNotFoundError, SandboxClientError, ValidationError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.opening import default_engine, open_host
from sandboxrt.host.ports import HostState
from sandboxrt.protocol.service_urls import ServiceSite
from sandboxrt.server.app import App, AppSettings
from sandboxrt.server.auth import Authenticator, EveryoneIsDefault, KeyAuthenticator
from sandboxrt.server.guarded import ConnectionLimits, serve_connections
from sandboxrt.server.memory import Memory
from sandboxrt.server.snapshots import HOST_SNAPSHOT
from sandboxrt.store import KeyRecords, LinkKeys, Store
from sandboxrt.store.serving import ServingLock

__all__ = ["RunningServer", "ServerSettings", "open_server"]

_log = logging.getLogger("sandboxrt.server")
_BACKLOG: Final = 1024
_DOMAIN: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z][A-Za-z0-9-]*(?::[1-9][0-9]{0,4})?"
)
_MAX_DOMAIN: Final = 200


@attrs.frozen(kw_only=True)
class ServerSettings:
    """What a server is told.

    Attributes:
        bind: Address to listen on.
        port: Port; 0 takes a free one.
        public_url: How clients reach it; ``http(s)://bind:port`` where left out.
        service_domain: Services and download links get origins below it, ``DOMAIN`` or ``DOMAIN:PORT``, of
            ``public_url``'s scheme and port; ``localhost`` and the port listened on where left out.
        certificate: PEM file of its certificate and those above it; ``None`` means plain HTTP.
        private_key: PEM file of its private key.
        insecure_http: Allow plain HTTP on addresses that are not this machine's alone; for a proxy in front.
        insecure_no_auth: Ask nobody for a key; on loopback only.
        host: The settings of the host; ``keep`` is always on.
        app: Those of the application; ``public_url`` in it is filled in.
        connections: Bounds of connections.
    """

    bind: str = "127.0.0.1"
    port: int = 8080
    public_url: str | None = None
    service_domain: str | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    insecure_http: bool = False
    insecure_no_auth: bool = False
    host: HostConfig = attrs.field(factory=HostConfig)
    app: AppSettings = attrs.field(factory=lambda: AppSettings(public_url=""))
    connections: ConnectionLimits = attrs.field(factory=ConnectionLimits)

    def check(self) -> None:
        """Refuse what would be unsafe or cannot be.

        Raises:
            ValidationError: With the way out.
        """
        loopback = is_loopback(self.bind)
        if (self.certificate is None) != (self.private_key is None):
            raise ValidationError("A certificate needs its private key, and the other way round", "certificate")
        if self.insecure_no_auth and not loopback:
            raise ValidationError(
                f"Without keys a server listens on loopback only, not on {self.bind}: everyone who reaches it could "
                "run commands here. Make keys with `sandboxrt keys create`, or use --host 127.0.0.1",
                "insecure_no_auth",
            )
        if self.certificate is None and not loopback and not self.insecure_http:
            raise ValidationError(
                f"Plain HTTP on {self.bind} would show keys and data to the network. Give --certfile and --keyfile, "
                "or, behind a proxy that does TLS, --insecure-http",
                "insecure_http",
            )
        if self.public_url is not None and not _is_base_url(self.public_url):
            raise ValidationError(
                f"--public-url must be like https://sandboxes.example.com, not {self.public_url!r}", "public_url"
            )

        self._check_domain()

    def _check_domain(self) -> None:
        if self.service_domain is None:
            return
        domain, _, port = self.service_domain.partition(":")
        if not _DOMAIN.fullmatch(self.service_domain) or len(domain) > _MAX_DOMAIN or (port and int(port) > 65535):
            raise ValidationError(
                f"--service-domain must be like services.example.com, not {self.service_domain!r}; every name below it "
                "must lead to this server",
                "service_domain",
            )

    def site(self, url: str, port: int) -> ServiceSite:
        """Where the services of a server are that clients reach at ``url`` and that listens on ``port``."""
        if self.service_domain is None:
            # These names mean the machine itself, so no proxy that stands elsewhere can be in between.
            parts = urlsplit(url)
            near = parts.port if parts.port and is_loopback(parts.hostname or "") else port
            return ServiceSite(base_url=url, domain="localhost", port=near)
        domain, _, given = self.service_domain.lower().partition(":")
        parts = urlsplit(url)
        return ServiceSite(
            base_url=url, domain=domain, port=int(given or parts.port or (443 if parts.scheme == "https" else 80))
        )


@attrs.frozen
class RunningServer:
    """A server that answers.

    Attributes:
        url: How clients reach it.
        port: Where it listens.
        app: The application.
        stopping: Set it to stop the server.
    """

    url: str
    port: int
    app: App
    stopping: trio.Event
    _settings: ServerSettings
    _tls: ssl.SSLContext | None
    _authenticator: Authenticator

    async def reload(self) -> None:
        """Read again what may have changed in files: the certificate and its key; and ask for API keys anew.

        Connections that are open are not touched. What else a server is told changes with its next start.

        Raises:
            SandboxClientError: The new certificate or key cannot be used; the old ones still are.
        """
        self._authenticator.forget()
        if self._tls is None:
            return

        def load(context: ssl.SSLContext | None) -> None:
            # First into a context of its own: half of a pair that does not fit would be worse than the old one.
            if _tls(self._settings) is not None and context is not None:
                context.load_cert_chain(str(self._settings.certificate), str(self._settings.private_key))

        await trio.to_thread.run_sync(load, self._tls)


@contextlib.asynccontextmanager
async def open_server(
    settings: ServerSettings, *, engine: Engine | None = None, state: HostState | None = None
) -> AsyncIterator[RunningServer]:
    """A server that answers for the length of the block, or until ``stopping`` is set. Leaving it stops it politely.

    Args:
        settings: What it is told.
        engine: What runs sandboxes; an OCI runtime's where left out.
        state: What remembers sandboxes and snapshots; the state folder where left out.

    Raises:
        ValidationError: The settings are unsafe or contradict each other.
        SandboxClientError: It cannot listen, sandboxes cannot run here, or another process serves the state folder;
            the message says why.

    Cancellation: As leaving; bounded by ``drain_s`` and the host's ``cleanup_limit_s``.
    """
    await _resolve(settings.bind)
    settings.check()
    tls = _tls(settings)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(settings.host.state_dir))
        serving = stack.enter_context(ServingLock.held(store.state_dir))
        authenticator: Authenticator = EveryoneIsDefault(settings.public_url)
        if not settings.insecure_no_auth:
            authenticator = KeyAuthenticator(KeyRecords(store))
        listeners = await _listen(settings.bind, settings.port)
        for listener in listeners:
            stack.push_async_callback(trio.aclose_forcefully, listener)
        port = listeners[0].socket.getsockname()[1]
        url = settings.public_url or f"{'http' if tls is None else 'https'}://{_in_url(settings.bind)}:{port}"
        auth_file = settings.app.auth_file or await trio.to_thread.run_sync(_no_credentials, settings.host.state_dir)
        config = attrs.evolve(settings.host, keep=True)
        if engine is None:
            # Whoever starts it is there to read why no sandbox can run; whoever asks for one later is not.
            await default_engine(config).report()
        host = await stack.enter_async_context(open_host(config, engine=engine, state=state))
        url = url.rstrip("/")
        told = attrs.evolve(settings.app, public_url=url, site=settings.site(url, port), auth_file=auth_file)
        await _warn_of_default(host, told.default_snapshot)
        app = App(host, authenticator, told, LinkKeys(store))
        await stack.enter_async_context(_serving(app, listeners, settings.connections, tls))
        serving.announce(url)
        await _tell_of_others(store)
        yield RunningServer(url, port, app, app.stopping, settings, tls, authenticator)


@contextlib.asynccontextmanager
async def _serving(
    app: App, listeners: list[trio.SocketListener], limits: ConnectionLimits, tls: ssl.SSLContext | None
) -> AsyncIterator[None]:
    ended = trio.Event()
    # The server's own tasks end with their connections; what is raised is the caller's own.
    with raising_plainly():
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await serve_connections(
                    app,
                    listeners,
                    stopping=app.stopping,
                    side_door=app.side_door,
                    limits=limits,
                    tls=tls,
                    task_status=task_status,
                )
                ended.set()

            # Not cancelled with the caller: what is under way is given its while, and that is bounded.
            with trio.CancelScope(shield=True):
                await nursery.start(serve)
            nursery.start_soon(Memory().run)
            try:
                yield
            finally:
                app.stopping.set()
                with trio.CancelScope(shield=True), trio.move_on_after(limits.drain_s + limits.linger_s):
                    await ended.wait()
                nursery.cancel_scope.cancel()


async def _resolve(bind: str) -> None:
    """Refuse a name that means no address, before anything is said about what is safe on it."""
    try:
        await trio.socket.getaddrinfo(bind or None, 0, flags=trio.socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ValidationError(
            f"--host {bind!r} cannot be resolved ({error}). Give an address of this machine: 127.0.0.1 for itself"
            " alone, 0.0.0.0 or :: for all its networks",
            "bind",
        ) from error


async def _warn_of_default(host: Host, name: str | None) -> None:
    """Say that creates without a snapshot will fail. Not refused: it may be imported while the server runs."""
    if name is None or name == HOST_SNAPSHOT:
        return
    try:
        found = await host.get_snapshot(name)
    except ResourceNotFoundError:
        advice = "make it with `sandboxrt snapshot import`, which works while the server runs, or say another"
        _log.warning("the default snapshot '%s' does not exist yet: sandboxes that name none fail; %s", name, advice)
    else:
        if found.status != "ready":
            _log.warning(
                "the default snapshot '%s' is %s: sandboxes that name none fail until then", name, found.status
            )


async def _tell_of_others(store: Store) -> None:
    if others := await store.other_owners():
        _log.warning(
            "%d other processes have sandboxes of their own in %s: those stay theirs and are not shown here",
            others,
            store.state_dir,
        )


async def _listen(bind: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=bind, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise SandboxClientError(f"Cannot listen on {bind} port {port}: {error}") from error


def _tls(settings: ServerSettings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.certificate, settings.private_key)
    except (OSError, ssl.SSLError) as error:
        raise SandboxClientError(
            f"The certificate {settings.certificate} or its key {settings.private_key} cannot be used: {error}. "
            "Both must be PEM, the key without a passphrase"
        ) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_credentials(state_dir: Path) -> Path:
    """A file of no registry credentials: tenants must not pull with those of whoever runs the server."""
    path = state_dir / "no-registry-auth.json"
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text('{"auths": {}}\n')
    draft.replace(path)
    return path


def is_loopback(bind: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if bind == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and parts.username is None
        and not (parts.query or parts.fragment)
        and url.isprintable()
        and " " not in url
    )


def _in_url(bind: str) -> str:
    if bind in ("0.0.0.0", "::"):  # noqa: S104  compared, not bound
        return "localhost"
    return f"[{bind}]" if ":" in bind else bind
