"""Images in: ``skopeo`` fetches them into a layout of our own, ``umoci`` unpacks them into one folder.

Nothing that comes from outside is believed: references are checked before they reach a command line, credentials
travel in a file of mode 0600, sizes are bounded while tools run, and what was unpacked is tidied before it is a layer.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import attrs
import trio

from sandboxrt.engine.base import Layer
from sandboxrt.errors import ResourceCreationError, ValidationError
from sandboxrt.protocol.image_names import DOCKER_HUB, PLAIN_REFERENCE, image_host, parse_registry_url
from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.snapshots import tidy
from sandboxrt.snapshots.content import ImageConfig, Phase, Progress, SnapshotConfig, SnapshotContent
from sandboxrt.snapshots.disk import give_to_sandboxes, namespace_prefix, remove_tree, tidy_tree
from sandboxrt.snapshots.tools import ToolResult, run_tool
from sandboxrt.store import run_blocking

__all__ = ["MACHINES", "Image", "ImageBuilder", "UnpackedImage", "UnpackedImages", "check_reference"]

_LOCAL: Final = ("oci:", "oci-archive:", "docker-archive:")
_TICK_S: Final = 0.2
_UNPACK_TRIES: Final = 4
_CRASH: Final = "panic: "
_MAX_JSON_BYTES: Final = 4 * 1024**2
_ROOT: Final = "root"
# What a registry refuses is final; a connection that broke is not. skopeo waits 1, 2 and 4 s between its tries.
_RETRIES: Final = ("--retry-times", "3")
MACHINES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
_FATAL: Final = re.compile(r'level=(?:fatal|error) msg=("(?:[^"\\]|\\.)*"|\S+)')
_NAME_PREFIX: Final = re.compile(r"^Error parsing image name \"[^\"]*\": ")
"""What skopeo begins with whatever hinders it, a name that it can parse perfectly well too."""
_REFUSED: Final = re.compile(r"\bunauthorized\b|\bdenied\b|authentication required|invalid username/password", re.I)
_SECRETS: Final = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


@attrs.frozen
class _Source:
    """Where an image comes from, as skopeo writes it, and the registry that its credentials are for."""

    reference: str
    registry: str | None
    tls_verify: bool | None


@attrs.frozen
class UnpackedImage:
    """An image whose files some snapshot has already.

    Attributes:
        content: Its layers, where they are for good, and its configuration.
        used_bytes: What they take on disk.
        layers_key: See :attr:`Image.layers_key`.
    """

    content: SnapshotContent
    used_bytes: int
    layers_key: str | None


class UnpackedImages(Protocol):
    """Finds files that need not be fetched or unpacked again, and holds them for this build."""

    async def of_digest(self, image_digest: str) -> UnpackedImage | None:
        """The same image of the same tenant, by the digest that its registry gives it."""
        ...

    async def of_layers(self, layers_key: str) -> UnpackedImage | None:
        """Any image with the same layers."""
        ...


@attrs.frozen
class Image:
    """An image whose files are in its build folder, or are another's; :meth:`settle` gives them their place for good.

    Attributes:
        config: How its programs want to run.
        digest: Its own, as its registry says where it comes from one.
        used_bytes: What its files take on disk.
        layers_key: What its files follow from: the digests of what was fetched, and checked against them.
        shared: The layers, where they are another's.
    """

    config: ImageConfig
    digest: str
    used_bytes: int
    layers_key: str | None
    _draft: Path
    shared: tuple[Layer, ...] = ()

    def settle(self, final: Path) -> tuple[Layer, ...]:
        """Drop what only the build needed, and give the folder its final name. Blocking. Returns the layers."""
        if self.shared:
            shutil.rmtree(self._draft, ignore_errors=True)
            return self.shared
        (self._draft / "auth.json").unlink(missing_ok=True)
        for name in ("image", "tmp", "conf"):
            shutil.rmtree(self._draft / name, ignore_errors=True)
        self._draft.rename(final)
        return (Layer(final / _ROOT, "/"),)


def check_reference(request: CreateSnapshot) -> None:
    """Refuse what cannot be an image reference, before anything is started.

    Raises:
        ValidationError: With ``field``.
    """
    _source(request)


def _source(request: CreateSnapshot) -> _Source:
    text = request.docker_image
    if not text or "\0" in text or len(text) > 4096:
        raise ValidationError("docker_image must be an image reference", "docker_image")
    if text.startswith(_LOCAL):
        kind, _, place = text.partition(":")
        if not place:
            raise ValidationError(f"docker_image needs a path after '{kind}:'", "docker_image")
        return _Source(text, None, None)
    name = text.removeprefix("docker://")
    if not PLAIN_REFERENCE.fullmatch(name):
        raise ValidationError(
            f"docker_image is no image reference: {text!r}"
            " (it is NAME[:TAG], HOST/NAME[:TAG], oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE)",
            "docker_image",
        )
    tls_verify = request.tls_verify
    host = image_host(name)
    if host is None and request.registry_url:
        try:
            address = parse_registry_url(request.registry_url)
        except ValueError as error:
            raise ValidationError(f"registry_url {error}", "registry_url") from None
        tls_verify = False if address.plain and tls_verify is None else tls_verify
        name, host = f"{address.prefix}/{name}", address.host
    return _Source(f"docker://{name}", host or DOCKER_HUB, tls_verify)


class ImageBuilder:
    """Fetches and unpacks one image in a folder of its own.

    Args:
        config: Registries and bounds.
        draft: An empty private folder; after a failure its owner removes it.
        unpacked: Files that need not be fetched or unpacked again.
        report: Gets the progress.
        limiter: For blocking work.
    """

    def __init__(
        self,
        config: SnapshotConfig,
        draft: Path,
        unpacked: UnpackedImages,
        report: Callable[[Progress], None],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._config = config
        self._draft = draft
        self._unpacked = unpacked
        self._report = report
        self._limiter = limiter
        self._layout = draft / "image"
        self._root = draft / _ROOT

    async def build(self, request: CreateSnapshot) -> Image:
        """Fetch, check and unpack; less where the files are there already.

        Raises:
            ResourceCreationError: ``ImagePull`` when it could not be had, ``ImageUnpack`` when it is broken,
                ``DiskFull`` when it does not fit; the message is the tool's own reason.
            EngineUnavailableError: skopeo or umoci is missing.

        Cancellation: partial; the draft folder is the caller's to remove.
        """
        source = _source(request)
        await self._blocking(lambda: self._prepare(request, source))
        digest, total = await self._look(request, source)
        if digest is not None and (same := await self._unpacked.of_digest(digest)) is not None:
            return self._shared(same, same.content.config, digest, same.layers_key)
        await self._pull(request, source, total)
        layout_digest, config, layers_key = await self._blocking(self._read_layout)
        digest = digest or layout_digest
        if (same := await self._unpacked.of_layers(layers_key)) is not None:
            return self._shared(same, config, digest, layers_key)
        await self._unpack()
        self._report(Progress(Phase.CHECK))
        used = await tidy_tree(self._root, self._limiter)
        if used > self._config.max_unpacked_bytes:
            raise self._too_large(self._config.max_unpacked_bytes, "ImageUnpack")
        await give_to_sandboxes(self._root)
        if (same := await self._unpacked.of_layers(layers_key)) is not None:
            # Another build of the same image was faster.
            return self._shared(same, config, digest, layers_key)
        return Image(config, digest, used, layers_key, self._draft)

    def _shared(self, same: UnpackedImage, config: ImageConfig, digest: str, layers_key: str | None) -> Image:
        return Image(config, digest, same.used_bytes, layers_key, self._draft, same.content.layers)

    async def _blocking(self, function: Callable[[], Any]) -> Any:
        return await run_blocking(self._limiter, function)

    def _prepare(self, request: CreateSnapshot, source: _Source) -> None:
        (self._draft / "tmp").mkdir(mode=0o700)
        (self._draft / "conf").mkdir(mode=0o700)
        if request.registry_username is not None and source.registry is not None:
            secret = f"{request.registry_username}:{request.registry_password or ''}".encode()
            auths = {"auths": {source.registry: {"auth": base64.b64encode(secret).decode()}}}
            opener = _private_opener
            with open(self._draft / "auth.json", "x", encoding="utf-8", opener=opener) as file:
                json.dump(auths, file)
        text = _registries_conf(self._config)
        if text is not None:
            (self._draft / "conf" / "registries.conf").write_text(text, encoding="utf-8")

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, "TMPDIR": str(self._draft / "tmp")}

    def _skopeo(self, *command: str) -> list[str]:
        argv = ["skopeo", "--override-os", "linux", "--tmpdir", str(self._draft / "tmp")]
        home = Path(os.environ.get("HOME") or "/root")
        if not any(
            path.exists() for path in (home / ".config/containers/policy.json", Path("/etc/containers/policy.json"))
        ):
            argv.append("--insecure-policy")
        conf = self._config.registries_conf
        if conf is None and (self._config.registry_mirrors or self._config.insecure_registries):
            conf = self._draft / "conf" / "registries.conf"
        if conf is not None:
            # Older skopeos do not read CONTAINERS_REGISTRIES_CONF; all know this option, which their help leaves out.
            argv += ["--registries-conf", str(conf)]
        return [*argv, *command]

    def _access(self, request: CreateSnapshot, source: _Source, prefix: str) -> list[str]:
        if source.registry is None:
            return []
        options = []
        if request.registry_username is not None:
            options += [f"--{prefix}authfile", str(self._draft / "auth.json")]
        elif request.auth_file is not None:
            options += [f"--{prefix}authfile", str(request.auth_file)]
        if source.tls_verify is not None:
            options.append(f"--{prefix}tls-verify={'true' if source.tls_verify else 'false'}")
        if self._config.certs_dir is not None:
            options += [f"--{prefix}cert-dir", str(self._config.certs_dir)]
        return options

    async def _look(self, request: CreateSnapshot, source: _Source) -> tuple[str | None, int | None]:
        """The digest under which a registry knows the image, and how much there is to fetch where it says so."""
        if source.registry is None:
            return None, None
        self._report(Progress(Phase.PULL))
        argv = self._skopeo("inspect", *_RETRIES, "--raw", *self._access(request, source, ""), source.reference)
        result = await run_tool(argv, env=self._environment(), max_stdout_bytes=_MAX_JSON_BYTES)
        if result.exit_code != 0 or result.truncated:
            raise self._failed(result, "skopeo", "ImagePull", request, source)
        try:
            sizes = [int(layer["size"]) for layer in json.loads(result.stdout).get("layers", ())]
        except (ValueError, TypeError, KeyError, AttributeError):
            sizes = []
        return f"sha256:{hashlib.sha256(result.stdout).hexdigest()}", sum(sizes) or None

    async def _pull(self, request: CreateSnapshot, source: _Source, total: int | None) -> None:
        argv = self._skopeo(
            "copy",
            "--quiet",
            *_RETRIES,
            *self._access(request, source, "src-"),
            source.reference,
            f"oci:{self._layout}:image",
        )
        await self._watched(argv, Phase.PULL, "ImagePull", self._draft, self._config.max_pull_bytes, total)

    async def _unpack(self) -> None:
        prefix = namespace_prefix()
        rootless = ["--rootless"] if os.geteuid() != 0 and not prefix else []
        argv = [*prefix, "umoci", "raw", "unpack", *rootless, "--image", f"{self._layout}:image", str(self._root)]
        limit = self._config.max_unpacked_bytes
        # When umoci 0.4 fails in the middle of a layer it often crashes on its way out, and its reason is lost. With
        # one processor its threads do not get in each other's way, and the second try says what is wrong.
        for attempt in range(_UNPACK_TRIES):
            extra = {"GOMAXPROCS": "1"} if attempt else {}
            try:
                await self._watched(argv, Phase.UNPACK, "ImageUnpack", self._root, limit, None, extra)
            except ResourceCreationError as error:
                if _CRASH not in str(error) or attempt == _UNPACK_TRIES - 1:
                    raise
                await remove_tree(self._root, self._limiter)
            else:
                return

    async def _watched(
        self,
        argv: Sequence[str],
        phase: str,
        error_type: str,
        folder: Path,
        limit: int,
        total: int | None,
        extra: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Run a tool that writes into ``folder``, and stop it when that or the disk gets too full."""
        tool = "umoci" if "umoci" in argv else "skopeo"
        self._report(Progress(phase, 0, total))
        trouble: list[ResourceCreationError] = []
        result: ToolResult | None = None

        async def watch() -> None:
            with contextlib.suppress(OSError):
                await watch_closely()

        async def watch_closely() -> None:
            start = await self._blocking(lambda: _free_bytes(self._draft))
            while True:
                await trio.sleep(_TICK_S)
                problem = await self._blocking(lambda: self._problem(folder, start, limit, error_type))
                if problem is not None:
                    trouble.append(problem)
                    nursery.cancel_scope.cancel()
                    return
                done = max(0, start - await self._blocking(lambda: _free_bytes(self._draft)))
                self._report(Progress(phase, done if total is None else min(done, total), total))

        free = await self._blocking(lambda: _free_bytes(self._draft))
        if free < self._config.reserve_bytes:
            raise self._disk_full()
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                result = await run_tool(argv, env={**self._environment(), **extra})
            except Exception as error:  # noqa: BLE001  carried out of the nursery, which would wrap it in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if trouble:
            raise trouble[0]
        assert result is not None
        if result.exit_code != 0:
            raise self._failed(result, tool, error_type)

    def _problem(self, folder: Path, start: int, limit: int, error_type: str) -> ResourceCreationError | None:
        free = _free_bytes(self._draft)
        if free < self._config.reserve_bytes:
            return self._disk_full()
        # Walking is dear, asking for the free space is cheap; others write to this disk too, so the walk decides.
        if start - free > limit and tidy.measure(str(folder), limit) > limit:
            return self._too_large(limit, error_type)
        return None

    def _too_large(self, limit: int, error_type: str) -> ResourceCreationError:
        return ResourceCreationError(f"The image is larger than the limit of {limit} bytes", "snapshot", error_type)

    def _disk_full(self) -> ResourceCreationError:
        return ResourceCreationError(
            f"{os.strerror(errno.ENOSPC)}: builds in {self._draft.parent} leave"
            f" {self._config.reserve_bytes} bytes free",
            "snapshot",
            "DiskFull",
        )

    def _failed(
        self,
        result: ToolResult,
        tool: str,
        error_type: str,
        request: CreateSnapshot | None = None,
        source: _Source | None = None,
    ) -> ResourceCreationError:
        reason = _reason(result, tool)
        if request is not None and source is not None and _REFUSED.search(reason):
            reason = f"{_refusal(request, source)} ({reason})"
        if os.strerror(errno.ENOSPC).lower() in reason.lower():
            error_type = "DiskFull"
        return ResourceCreationError(reason, "snapshot", error_type)

    def _read_layout(self) -> tuple[str, ImageConfig, str]:
        """Digest, configuration and layers' key of what was fetched; the platform must be this machine's."""
        try:
            index = _load(self._layout / "index.json")
            digest = str(index["manifests"][0]["digest"])
            manifest = _load(_blob(self._layout, digest))
            values = _load(_blob(self._layout, str(manifest["config"]["digest"])))
            config = _image_config(values.get("config") or {})
            layers_key = _layers_key(manifest["layers"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ResourceCreationError(f"The image is broken: {error}", "snapshot", "ImagePull") from error
        mine = MACHINES.get(platform.machine(), platform.machine())
        found = (values.get("os") or "linux", values.get("architecture") or mine)
        if found != ("linux", mine):
            raise ResourceCreationError(
                f"The image is for {found[0]}/{found[1]}, but this machine is linux/{mine}", "snapshot", "ImagePull"
            )
        return digest, config, layers_key


def _layers_key(layers: Sequence[Mapping[str, Any]]) -> str:
    """The same for two images only where the same bytes are unpacked in the same order.

    By the digests of what was fetched, which are checked when it is, and not by those that an image's configuration
    claims for it: whoever names another's layers must have them.
    """
    lines = "".join(f"{layer['mediaType']} {layer['digest']}\n" for layer in layers)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _registries_conf(config: SnapshotConfig) -> str | None:
    if config.registries_conf is not None or not (config.registry_mirrors or config.insecure_registries):
        return None
    insecure = set(config.insecure_registries)
    lines = ['unqualified-search-registries = ["docker.io"]']
    if config.registry_mirrors:
        lines += ["[[registry]]", 'location = "docker.io"']
        for mirror in config.registry_mirrors:
            flag = "true" if mirror.partition("/")[0] in insecure else "false"
            lines += ["[[registry.mirror]]", f"location = {json.dumps(mirror)}", f"insecure = {flag}"]
    for registry in sorted(insecure):
        lines += ["[[registry]]", f"location = {json.dumps(registry)}", "insecure = true"]
    return "\n".join(lines) + "\n"


def _free_bytes(path: Path) -> int:
    """Free space, or less where the inodes run out first (an image of empty files is a bomb too)."""
    found = os.statvfs(path)
    if found.f_files and found.f_favail < 1000:
        return 0
    return found.f_bavail * found.f_frsize


def _load(path: Path) -> Any:
    with open(path, "rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise ValueError(f"{path.name} is too large")
    return json.loads(content)


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    if not re.fullmatch(r"sha(256|512)", algorithm) or not re.fullmatch(r"[0-9a-f]{64,128}", value):
        raise ValueError(f"unusable digest {digest!r}")
    return layout / "blobs" / algorithm / value


def _image_config(values: Mapping[str, Any]) -> ImageConfig:
    env = dict(entry.partition("=")[::2] for entry in values.get("Env") or () if isinstance(entry, str))
    return ImageConfig(
        env=env,
        user=str(values.get("User") or "") or None,
        work_dir=str(values.get("WorkingDir") or "") or None,
        entrypoint=tuple(str(word) for word in values.get("Entrypoint") or ()),
        cmd=tuple(str(word) for word in values.get("Cmd") or ()),
    )


def _refusal(request: CreateSnapshot, source: _Source) -> str:
    """Who refused whom; what was offered is nobody's business."""
    named = f"Registry '{request.registry_name}' at {source.registry}" if request.registry_name else source.registry
    who = f"user '{request.registry_username}'" if request.registry_username is not None else "a caller without a login"
    return f"{named} refused {who}"


def _reason(result: ToolResult, tool: str) -> str:
    """What a tool said last that is worth reading: one line, without time stamps, colours and secrets."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", result.stderr.decode("utf-8", "replace"))
    found = _FATAL.findall(text) or re.findall(r"^(panic: .*)", text, re.MULTILINE)
    if found:
        line = found[-1]
        if line.startswith('"'):
            try:
                line = json.loads(line)
            except ValueError:
                line = line.strip('"')
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        line = lines[-1] if lines else f"ended with exit code {result.exit_code}"
    line = " ".join(_SECRETS.sub("***", line).split()).lstrip("\u2a2f ")
    line = _NAME_PREFIX.sub("", line)
    return f"{tool}: {line[:1000]}"
