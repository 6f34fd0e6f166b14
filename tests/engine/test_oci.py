"""Containers of the OCI engine, for real, with each runtime."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.base import ContainerSpec, Layer
from sandboxrt.engine.bundle import CAPABILITIES
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.errors import EngineUnavailableError, IsolationError, ResourceCreationError
from sandboxrt.models import Isolation, Limits
from tests.engine.oci_kit import USER, Workplace, output, run

pytestmark = [pytest.mark.container, pytest.mark.timeout(60)]

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
CAPABILITY_NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SYS_CHROOT": 18,
    "CAP_SETFCAP": 31,
}


class Made:
    """A container for the length of a block."""

    def __init__(self, engine: OciEngine, spec: ContainerSpec) -> None:
        self.engine, self.spec = engine, spec

    async def __aenter__(self) -> OciContainer:
        self.container = await self.engine.create(self.spec)
        return self.container

    async def __aexit__(self, *exc_info: object) -> None:
        await self.container.close()


async def test_a_command_runs_and_its_exit_is_reported(engine: OciEngine, workplace: Workplace) -> None:
    async with Made(engine, workplace.spec()) as container:
        status, printed = await run(container, "echo hello; hostname; exit 7")
        assert (status.code, printed) == (7, "hello\nkitchen\n")


async def test_every_namespace_is_its_own(engine: OciEngine, workplace: Workplace) -> None:
    async with Made(engine, workplace.spec()) as container:
        inside = (await output(container, f"readlink {' '.join(f'/proc/self/ns/{n}' for n in NAMESPACES)}")).split()
        assert len(inside) == len(NAMESPACES)
        for name, link in zip(NAMESPACES, inside, strict=True):
            assert link != os.readlink(f"/proc/self/ns/{name}")


async def test_ids_are_the_sandboxs_block(engine: OciEngine, workplace: Workplace) -> None:
    spec = workplace.spec()
    async with Made(engine, spec) as container:
        maps = await output(container, "cat /proc/self/uid_map /proc/self/gid_map")
        assert [line.split() for line in maps.splitlines()] == [["0", str(spec.uid_base), "65536"]] * 2
        assert await output(container, "id -u; id -g", identity=USER) == "1000\n1000"


async def test_rights_are_few_and_gone_for_ordinary_users(engine: OciEngine, workplace: Workplace) -> None:
    show = "grep -E '^(Cap(Prm|Eff|Bnd|Inh|Amb)|NoNewPrivs|Seccomp):' /proc/self/status"
    async with Made(engine, workplace.spec()) as container:
        as_root = dict(line.split() for line in (await output(container, show)).splitlines())
        as_user = dict(line.split() for line in (await output(container, show, identity=USER)).splitlines())
    expected = sum(1 << CAPABILITY_NUMBERS[name] for name in CAPABILITIES)
    for name in ("CapPrm:", "CapEff:", "CapBnd:"):
        assert int(as_root[name], 16) == expected
    assert {int(as_user[name], 16) for name in ("CapPrm:", "CapEff:", "CapInh:", "CapAmb:")} == {0}
    for status in (as_root, as_user):
        assert (status["NoNewPrivs:"], status["Seccomp:"]) == ("1", "2")


async def test_no_path_of_the_host_shows(engine: OciEngine, workplace: Workplace) -> None:
    for disk in (64 * 1024**2, None):
        async with Made(engine, workplace.spec(limits=Limits(disk_bytes=disk))) as container:
            mounts = await output(container, "cat /proc/self/mountinfo /proc/1/mountinfo /proc/self/mounts")
            assert str(workplace.folder) not in mounts
            assert "sandboxes" not in mounts
            assert not re.search(r"/(mnt|media|srv|opt|var|home|root)/", mounts)
            groups = await output(container, "cat /proc/self/cgroup")
            assert {line.split(":", 2)[2].split("/")[1] for line in groups.splitlines()} <= {"", "c1", "c2", "c3"}


async def test_only_the_usual_devices(engine: OciEngine, workplace: Workplace) -> None:
    async with Made(engine, workplace.spec()) as container:
        devices = await output(container, r"find /dev \( -type c -o -type b \) | sort; find /dev -type b")
        usual = {"full", "null", "ptmx", "random", "tty", "urandom", "zero", "console"}
        assert {Path(path).name for path in devices.splitlines()} <= usual
        assert (await run(container, "mknod /root/sda b 8 0"))[0].code != 0


async def test_the_network_is_the_loopback(engine: OciEngine, workplace: Workplace) -> None:
    async with Made(engine, workplace.spec()) as container:
        links = await output(container, "cat /proc/net/dev | tail -n +3")
        assert [line.split(":")[0].strip() for line in links.splitlines()] == ["lo"]
        check = "import socket; s=socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
        await output(container, f'python3 -c "{check}"')


async def test_limits_reach_the_control_groups(engine: OciEngine, workplace: Workplace) -> None:
    limits = Limits(vcpus=0.5, mem_bytes=128 * 1024**2, pids=50, disk_bytes=64 * 1024**2, inotify_instances=7)
    async with Made(engine, workplace.spec(limits=limits)) as container:
        assert container.cgroups is not None
        hierarchy = container.cgroups.hierarchy

        def read(controller: str, v1: str, v2: str) -> str:
            folder = hierarchy.limiting_folder(controller, container.id)
            assert folder is not None
            return (folder / (v1 if controller in hierarchy.v1 else v2)).read_text().strip()

        assert read("memory", "memory.limit_in_bytes", "memory.max") == str(128 * 1024**2)
        assert read("pids", "pids.max", "pids.max") == "50"
        assert read("cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
        size = int(await output(container, "df --output=size -B1 / | tail -1"))
        assert 32 * 1024**2 < size <= 64 * 1024**2
        assert await output(container, "cat /proc/sys/user/max_inotify_instances") == "7"
        assert await output(container, "cat /proc/sys/user/max_user_namespaces") == "0"


async def test_a_full_disk_is_enospc_inside_and_nothing_outside(engine: OciEngine, workplace: Workplace) -> None:
    async with Made(engine, workplace.spec()) as container:
        _, printed = await run(container, "head -c 100M /dev/zero > /root/fill; echo; df /root")
        assert "No space left on device" in printed
        await output(container, "rm /root/fill && head -c 1M /dev/zero > /root/again")


async def test_memory_beyond_the_limit_is_an_oom_kill_that_is_counted(engine: OciEngine, workplace: Workplace) -> None:
    async with Made(engine, workplace.spec(limits=Limits(mem_bytes=64 * 1024**2))) as container:
        assert await container.oom_kills() == 0
        status, _ = await run(container, "python3 -c 'b = bytearray(200 * 1024**2)'")
        assert status.signal == 9 or status.code == 137
        assert await container.oom_kills() >= 1
        assert await output(container, "echo alive") == "alive"


async def test_generated_files_show_and_stay_off_the_disk(engine: OciEngine, workplace: Workplace) -> None:
    spec = workplace.spec(limits=Limits(disk_bytes=None))
    async with Made(engine, spec) as container:
        assert await output(container, "cat /etc/hostname") == "kitchen"
        assert await output(container, "getent hosts localhost") != ""
        assert "kitchen" in await output(container, "cat /etc/hosts")
        assert await output(container, "stat -c '%a %u:%g' /tmp /etc /usr") == "1777 0:0\n755 0:0\n755 0:0"
    upper = spec.state_dir / "data/upper"
    assert sorted(path.name for path in upper.iterdir()) == ["@", "@usr"]
    assert [str(path) for path in upper.rglob("*") if path.parent != upper] == []


async def test_files_survive_stop_and_start(engine: OciEngine, workplace: Workplace) -> None:
    for disk in (64 * 1024**2, None):
        spec = workplace.spec(limits=Limits(disk_bytes=disk))
        async with Made(engine, spec) as container:
            await output(container, "echo one > /root/kept; echo two > /tmp/kept; echo three > /usr/kept; rm /opt -r")
            await output(container, "echo other > /etc/hostname; chown 1000:1000 /root/kept")
        async with Made(engine, spec) as container:
            kept = await output(container, "cat /root/kept /tmp/kept /usr/kept /etc/hostname; stat -c %u /root/kept")
            assert kept.split() == ["one", "two", "three", "other", "1000"]
            assert (await run(container, "test -e /opt"))[0].code == 1
        assert not Path("/usr/kept").exists()


async def test_a_link_in_place_of_a_mount_point_is_not_followed(engine: OciEngine, workplace: Workplace) -> None:
    (workplace.folder / "extra").mkdir()
    extra = Layer(workplace.folder / "extra", "/srv/data")
    layers = (Layer(workplace.folder / "root"), Layer(Path("/usr"), "/usr"), extra)
    spec = workplace.spec(layers=layers, limits=Limits(disk_bytes=None))
    async with Made(engine, spec) as container:
        await output(container, "echo written > /srv/data/file")
    (spec.state_dir / "data/upper/@/srv").symlink_to("/etc")
    with pytest.raises(ResourceCreationError, match="mount point"):
        await engine.create(spec)


async def test_layers_are_shared_and_stay_as_they_are(engine: OciEngine, workplace: Workplace) -> None:
    async with Made(engine, workplace.spec()) as one, Made(engine, workplace.spec()) as other:
        await output(one, "echo changed > /etc/passwd; rm -rf /opt")
        assert "root:x:0:0" in await output(other, "cat /etc/passwd; ls -d /opt")
    assert "root:x:0:0" in (workplace.folder / "root/etc/passwd").read_text()


async def test_what_is_required_and_missing_is_refused(engine: OciEngine, workplace: Workplace) -> None:
    with pytest.raises(IsolationError) as caught:
        await engine.create(workplace.spec(require=frozenset({Isolation.GUEST_KERNEL})))
    assert caught.value.missing == ("guest-kernel",)
    assert "sandboxrt doctor" in str(caught.value)


async def test_a_missing_layer_is_an_error_that_names_it(engine: OciEngine, workplace: Workplace) -> None:
    layers = (Layer(workplace.folder / "nowhere"), Layer(Path("/usr"), "/usr"))
    with pytest.raises(ResourceCreationError, match=r"layer: .*nowhere: No such file"):
        await engine.create(workplace.spec(layers=layers))
    with pytest.raises(ResourceCreationError, match="cannot appear at"):
        await engine.create(workplace.spec(layers=(Layer(workplace.folder / "root", "/../etc"),)))


async def test_a_missing_runtime_is_named(workplace: Workplace) -> None:
    async with OciEngine(workplace.folder, "no-such-runtime") as engine:
        with pytest.raises(EngineUnavailableError, match="no-such-runtime"):
            await engine.create(workplace.spec())
        with pytest.raises(EngineUnavailableError, match="packages of Debian and Ubuntu: crun, runc, runsc"):
            await engine.report()


async def test_death_from_inside_is_noticed(engine: OciEngine, workplace: Workplace) -> None:
    container = await engine.create(workplace.spec())
    with trio.fail_after(10):
        assert container._remains.init is not None
        os.kill(_pid_of(container._remains.init), 9)
        assert "ended" in await container.wait_dead()
    await container.close()
    await container.close()


def _pid_of(pidfd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return int(re.search(r"^Pid:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
