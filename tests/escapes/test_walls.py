"""Each wall alone: many an attempt runs into two or three, and the fall of one must not go unseen behind the next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from sandboxrt.engine import bundle
from sandboxrt.engine.base import Layer
from sandboxrt.engine.oci import OciEngine
from sandboxrt.engine.seccomp import ALLOWED, seccomp_profile
from tests.engine.oci_kit import Workplace, settled
from tests.escapes.attempts import ATTEMPTS, Attempt
from tests.escapes.kit import ROOT, USER, HostCanary, ask, ask_all, running, workplace

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

# What a user namespace makes powerful: with these, nothing but the filter refuses mounts, namespaces and raw sockets.
POWERFUL = (
    "CAP_SYS_ADMIN", "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH",
    "CAP_SYSLOG", "CAP_SYS_TIME", "CAP_SYS_NICE",
)  # fmt: skip
FILTERED = [
    each
    for each in ATTEMPTS
    if each.identity == ROOT and each.family in (4, 5, 6, 9) and each.question != "interface_flags"
]

# Written down a second time: a table that is tested against itself can lose a line unseen.
NEVER_ALLOWED = """
_sysctl acct add_key afs_syscall bpf clock_settime clone clone3 create_module delete_module fanotify_init fanotify_mark
file_setattr finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module io_setup io_submit io_uring_enter
io_uring_register io_uring_setup ioctl ioperm iopl kexec_file_load kexec_load keyctl listmount lookup_dcookie
lsm_set_self_attr migrate_pages modify_ldt mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at
open_tree open_tree_attr perf_event_open personality pidfd_getfd pivot_root query_module quotactl quotactl_fd reboot
request_key security setdomainname sethostname setns settimeofday socket statmount swapoff swapon syslog umount umount2
unshare uselib userfaultfd ustat vhangup vm86 vm86old vserver
""".split()
MASKED = """
/proc/acpi /proc/asound /proc/cmdline /proc/diskstats /proc/interrupts /proc/kallsyms /proc/kcore /proc/keys
/proc/latency_stats /proc/partitions /proc/sched_debug /proc/scsi /proc/sysrq-trigger /proc/timer_list
/proc/timer_stats /proc/vmallocinfo /sys/block /sys/class/block /sys/dev/block /sys/devices/virtual/block
/sys/devices/virtual/powercap /sys/firmware /sys/fs/bpf /sys/fs/ext4 /sys/kernel /sys/module
""".split()
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/sys", bundle.INIT_PATH)
CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31)  # chown ... setpcap, net_bind_service, sys_chroot, setfcap


async def _collect(folder: Path, runtime: str, layer: Layer, canary: HostCanary) -> Mapping[str, str]:
    place = workplace(folder)
    async with OciEngine(folder, runtime) as engine, running(engine, place, layer) as container:
        effective = re.search(r"^CapEff:\s+(\w+)", await ask(container, "dump", "/proc/self/status"), re.MULTILINE)
        assert effective is not None
        assert int(effective[1], 16) & 1 << 21, "no CAP_SYS_ADMIN: this container proves nothing"
        asked = {each.question: canary.inside(each.question) for each in FILTERED}
        answers = await ask_all(container, asked.values())
    assert await settled(place) == []
    return {question: answers[filled] for question, filled in asked.items()}


@pytest.fixture(scope="module", params=["crun", "runc"])
def powerful(request: pytest.FixtureRequest, state_dir: Path, layer: Layer, canary: HostCanary) -> Mapping[str, str]:
    """The verdicts in a container whose root has every capability that matters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "CAPABILITIES", (*bundle.CAPABILITIES, *POWERFUL))
        return trio.run(_collect, state_dir, request.param, layer, canary)


@pytest.mark.parametrize("attempt", FILTERED, ids=lambda attempt: attempt.id)
def test_the_filter_alone_refuses(attempt: Attempt, powerful: Mapping[str, str]) -> None:
    verdict = powerful[attempt.question]
    assert verdict.split()[0:1] == ["refused"], verdict
    assert verdict.split()[1] in attempt.refusals, verdict


def test_the_filter_allows_nothing_that_it_must_not() -> None:
    assert not set(NEVER_ALLOWED) & ALLOWED
    profile = seccomp_profile()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    # Without a word on it the runtimes serve the machine's own interface alone.
    assert "architectures" not in profile
    free = {name for rule in profile["syscalls"] if "args" not in rule for name in rule["names"]}
    refused = {n for r in profile["syscalls"] if r["action"] == "SCMP_ACT_ERRNO" for n in r["names"]}
    assert not {"clone", "ioctl", "personality", "socket"} & free
    assert not refused & ALLOWED


async def test_masks_and_read_only_mounts_are_there(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        lines = [line.split() for line in (await ask(container, "dump", "/proc/self/mountinfo")).splitlines()]
    mounted = {fields[4]: fields[5].split(",") for fields in lines}
    assert [path for path in MASKED if Path(path).exists() and path not in mounted] == []
    assert [path for path in READONLY if "ro" not in mounted[path]] == []
    # In the configuration for the kernels that have what this one has not.
    assert set(MASKED) <= set(bundle.MASKED_PATHS)


async def test_capabilities_are_these_and_an_ordinary_user_has_none(
    engine: OciEngine, place: Workplace, layer: Layer
) -> None:
    async with running(engine, place, layer) as container:
        held = {}
        for who in (ROOT, USER):
            status = await ask(container, "dump", "/proc/self/status", identity=who)
            held[who] = {
                name: int(value, 16) for name, value in re.findall(r"^(Cap\w+):\s+(\w+)", status, re.MULTILINE)
            }
    expected = sum(1 << number for number in CAPABILITIES)
    assert [held[ROOT][name] for name in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")] == [expected] * 3 + [0, 0]
    assert [held[USER][name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [0] * 4
