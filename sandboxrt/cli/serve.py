"""``sandboxrt serve``: the sandbox API on a real server."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from pathlib import Path

import click
import trio

from sandboxrt.cli.quota import quota_options
from sandboxrt.cli.values import PORTS, SIZE
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import HostConfig, default_state_dir
from sandboxrt.host.connections import ConnectionSettings, PortRules
from sandboxrt.models import DEFAULT_LIMITS, Quota
from sandboxrt.protocol.rest_wire import Ceilings
from sandboxrt.server.app import AppSettings
from sandboxrt.server.limits import KeyLimits
from sandboxrt.server.serve import RunningServer, ServerSettings, open_server

__all__ = ["serve"]

_log = logging.getLogger("sandboxrt.server")
_CEILINGS = Ceilings()
_KEYS = KeyLimits()
_HOST = HostConfig()
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--host", "bind", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Listen on this address."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free port.")
@click.option("--public-url", metavar="URL", help="How clients reach this server, when that is not host and port.")
@click.option(
    "--service-domain",
    metavar="DOMAIN",
    help="Services get origins below it (3000--ID.DOMAIN); every such name must lead here. [localhost]",
)
@click.option("--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="Folder for sandboxes and snapshots.")
@click.option("--certfile", type=_FILE, help="TLS certificate, PEM.")
@click.option("--keyfile", type=_FILE, help="Its private key, PEM.")
@click.option("--insecure-http", is_flag=True, help="Allow plain HTTP beyond loopback (a proxy in front does TLS).")
@click.option("--insecure-no-auth", is_flag=True, help="Ask for no keys; on loopback only.")
@click.option("--runtime", metavar="NAME", envvar="SANDBOXRT_RUNTIME", default="crun", show_default=True)
@click.option(
    "--default-snapshot",
    metavar="NAME",
    help="What sandboxes start from when they name none: a snapshot of this machine, or 'host' for its own /usr.",
)
@click.option("--registry-auth-file", type=_FILE, help="Registry credentials for everyone's builds.")
@click.option("--max-cpus", type=click.FloatRange(min=0.01), default=_CEILINGS.vcpus, show_default=True)
@click.option("--max-memory", type=SIZE, default=_CEILINGS.mem_bytes, help="Most that one sandbox may ask for. [1t]")
@click.option("--max-disk", type=SIZE, default=_CEILINGS.fs_capacity_bytes, help="Likewise, of its disk. [8t]")
@quota_options
@click.option("--max-requests", type=click.FloatRange(min=1), default=_KEYS.requests_per_s, help="A second and key.")
@click.option(
    "--allow-ports",
    metavar="PORTS",
    type=PORTS,
    default="1-65535",
    show_default=True,
    help="Ports inside that may be reached, such as 5432,8000-8999; none = no tunnels, no service URLs.",
)
@click.option(
    "--min-free",
    type=SIZE,
    help="Below so much free disk nothing new begins, and running sandboxes get no more of it. [1/20 of it, <= 2g]",
)
@click.option(
    "--replay-memory",
    type=SIZE,
    default=_HOST.replay_budget_bytes,
    help="Memory for output that readers may still want, all commands together; more goes to files. [256m]",
)
@click.option(
    "--replay-disk",
    type=SIZE,
    default=_HOST.spill_budget_bytes,
    help="Disk for such output, all sandboxes together; beyond it the oldest is lost, and readers are told. [16g]",
)
@click.option("--access-log/--no-access-log", default=True, help="A line of JSON for each request, on standard output.")
def serve(
    *,
    bind: str,
    port: int,
    public_url: str | None,
    service_domain: str | None,
    state_dir: Path | None,
    certfile: Path | None,
    keyfile: Path | None,
    insecure_http: bool,
    insecure_no_auth: bool,
    runtime: str,
    default_snapshot: str | None,
    registry_auth_file: Path | None,
    max_cpus: float,
    max_memory: int,
    max_disk: int,
    max_sandboxes: int | None,
    total_cpus: float | None,
    total_memory: int | None,
    total_storage: int | None,
    max_requests: float,
    allow_ports: PortRules,
    min_free: int | None,
    replay_memory: int,
    replay_disk: int,
    access_log: bool,
) -> None:
    """Serve the sandbox API; LangSmith clients work with it as they are.

    Quotas are for each tenant; those of a key (`sandboxrt keys create`) come before them.

    Stops politely on SIGTERM and SIGINT. Sandboxes stay, stopped, for the next start.
    """
    settings = ServerSettings(
        bind=bind,
        port=port,
        public_url=public_url,
        service_domain=service_domain,
        certificate=certfile,
        private_key=keyfile,
        insecure_http=insecure_http,
        insecure_no_auth=insecure_no_auth,
        host=HostConfig(
            state_dir=state_dir or default_state_dir(),
            runtime=runtime,
            quota=Quota(sandboxes=max_sandboxes, vcpus=total_cpus, mem_bytes=total_memory, storage_bytes=total_storage),
            connections=ConnectionSettings(ports=allow_ports),
            replay_budget_bytes=replay_memory,
            min_free_bytes=min_free,
            spill_budget_bytes=replay_disk,
        ),
        app=AppSettings(
            public_url="",
            limits=DEFAULT_LIMITS,
            ceilings=Ceilings(vcpus=max_cpus, mem_bytes=max_memory, fs_capacity_bytes=max_disk),
            default_snapshot=default_snapshot,
            auth_file=registry_auth_file,
            key_limits=KeyLimits(requests_per_s=max_requests, burst=max(1, int(2 * max_requests))),
        ),
    )
    _start_logs(access_log)
    try:
        trio.run(_serve, settings)
    except (SandboxClientError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except BaseExceptionGroup as group:
        _, others = group.split(KeyboardInterrupt)
        if others is not None:
            raise


async def _serve(settings: ServerSettings) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with open_server(settings) as server:
            _say(f"sandboxrt serves {server.url}")
            async for number in signals:
                if number == signal.SIGHUP:
                    await _reload(server)
                    continue
                _say(f"sandboxrt stops ({signal.Signals(number).name})")
                return


async def _reload(server: RunningServer) -> None:
    """For who sends SIGHUP, and for the end of the terminal that the server was started from, which sends it, too."""
    try:
        await server.reload()
    except SandboxClientError as error:
        _log.error("nothing was reloaded: %s", error)
    else:
        _say("sandboxrt reloaded its certificate and keys (SIGHUP)")


def _say(text: str) -> None:
    """On standard error, where anybody is there to read it."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _start_logs(access_log: bool) -> None:
    errors = logging.StreamHandler(sys.stderr)
    errors.setFormatter(_JsonLines())
    logging.getLogger("sandboxrt").addHandler(errors)
    for name in ("sandboxrt.host.commands", "sandboxrt.host.adoption"):
        logging.getLogger(name).setLevel(logging.INFO)
    access = logging.getLogger("sandboxrt.server.access")
    access.propagate = False
    if access_log:
        access.setLevel(logging.INFO)
        access.addHandler(logging.StreamHandler(sys.stdout))
