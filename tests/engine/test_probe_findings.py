"""What is concluded from what was found out about a host, and the fixes that are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from sandboxrt.engine.causes import Surroundings
from sandboxrt.engine.findings import HostFacts, RuntimeFacts, Trial, isolation_report
from sandboxrt.engine.hierarchy import CgroupKind, Hierarchy
from sandboxrt.engine.idmap import SubidRange
from sandboxrt.models import DEFAULT_REQUIRE, Isolation

YES, NO = Trial(True), Trial(False, "EPERM")
V2 = Hierarchy(kind=CgroupKind.V2, unified=Path("/sys/fs/cgroup"), controllers=frozenset({"memory", "cpu", "pids"}))
LIMITS = {Isolation.MEMORY_LIMIT, Isolation.CPU_LIMIT, Isolation.PIDS_LIMIT, Isolation.OOM_REPORT}

ROOT_ON_V2 = HostFacts(
    runtime=RuntimeFacts(name="crun", path="/usr/bin/crun", version="1.14"),
    is_root=True,
    user="root",
    hierarchy=V2,
    container=YES,
    cgroups=YES,
    swap_limit=True,
    userns=YES,
    overlay=YES,
    idmap=YES,
    loop=YES,
    inotify=YES,
)
USER_ON_V2 = attrs.evolve(
    ROOT_ON_V2,
    is_root=False,
    user="alice",
    hierarchy=Hierarchy(kind=CgroupKind.V2, reason="this user may write to no cgroup (none was delegated)"),
    cgroups=NO,
    idmap=NO,
    loop=NO,
)


def missing(facts: HostFacts) -> set[Isolation]:
    report = isolation_report(facts)
    assert list(report.findings) == list(Isolation), "a finding for every property, in order"
    for finding in report.findings.values():
        assert finding.detail
        assert (finding.fix is None) or not finding.achieved
    return {prop for prop in Isolation if not report.has(prop)}


def test_root_on_a_current_host_has_everything_but_a_guest_kernel() -> None:
    assert missing(ROOT_ON_V2) == {Isolation.GUEST_KERNEL}
    report = isolation_report(ROOT_ON_V2)
    assert report.runtime == "crun 1.14"
    assert report.findings[Isolation.GUEST_KERNEL].fix == "sudo apt-get install runsc, then --runtime runsc"


def test_an_ordinary_user_lacks_what_the_host_must_give() -> None:
    lacks = missing(USER_ON_V2)
    assert lacks == LIMITS | {
        Isolation.UID_BLOCK,
        Isolation.DISK_LIMIT,
        Isolation.TREE_KILL,
        Isolation.GUEST_KERNEL,
    }
    assert not lacks & DEFAULT_REQUIRE
    fix = isolation_report(USER_ON_V2).findings[Isolation.MEMORY_LIMIT].fix
    assert fix is not None
    assert "Delegate=cpu cpuset io memory pids" in fix
    assert "systemd-run --user --scope" in fix


def test_a_user_with_a_delegated_subtree_has_its_limits() -> None:
    delegated = attrs.evolve(V2, delegated=True, controllers=frozenset({"memory", "pids"}))
    lacks = missing(attrs.evolve(USER_ON_V2, hierarchy=delegated, cgroups=YES))
    assert Isolation.MEMORY_LIMIT not in lacks
    assert Isolation.TREE_KILL not in lacks
    assert Isolation.CPU_LIMIT in lacks


@pytest.mark.parametrize(
    ("detail", "fix"),
    [
        ("newuidmap and newgidmap are missing (newuidmap)", "sudo apt-get install uidmap"),
        ("/etc/subuid has no range of 65536 ids for alice", "sudo usermod --add-subuids 100000-165535 --add-subgids"),
        ("namespace: user: No space left on device", "sudo sysctl -w user.max_user_namespaces=65536"),
    ],
)
def test_a_user_without_a_user_namespace_is_told_why(detail: str, fix: str) -> None:
    no = Trial(False, detail)
    around = Surroundings(user="alice", is_root=False, closed=("user.max_user_namespaces",))
    facts = attrs.evolve(USER_ON_V2, userns=no, container=no, around=around)
    assert missing(facts) >= DEFAULT_REQUIRE
    said = isolation_report(facts).findings[Isolation.USER_NAMESPACE].fix
    assert said is not None
    assert said.startswith(fix)
    if "subuid" in detail:
        assert "alice" in said


@pytest.mark.parametrize(
    ("change", "prop", "detail", "fix"),
    [
        (
            {"container": Trial(False, "not installed"), "runtime": RuntimeFacts(name="/opt/crun", path=None)},
            Isolation.SECCOMP,
            "not installed",
            "sudo apt-get install crun",
        ),
        (
            {"container": Trial(False, "launch.c cannot be compiled here")},
            Isolation.SECCOMP,
            "compiled",
            "sudo apt-get install gcc libc6-dev",
        ),
        (
            {"overlaps": (SubidRange("bob", 600000000, 65536),)},
            Isolation.UID_BLOCK,
            "bob:600000000:65536",
            "move those ranges",
        ),
        ({"idmap": Trial(False, "idmap: EINVAL")}, Isolation.UID_BLOCK, "EINVAL", "use Linux 5.19"),
        (
            {"loop": Trial(False, "disk: /dev/loop-control: No such file or directory")},
            Isolation.DISK_LIMIT,
            "loop",
            "sudo modprobe loop",
        ),
        ({"loop": Trial(False, "mkfs.ext4 is missing")}, Isolation.DISK_LIMIT, "mkfs", "sudo apt-get install e2fs"),
        ({"overlay": Trial(False, "overlay: m: No such device")}, Isolation.DISK_LIMIT, "overlay", "sudo modprobe ove"),
        ({"overlay": NO}, Isolation.DISK_LIMIT, "EPERM", "its own words say why"),
        ({"inotify": NO}, Isolation.INOTIFY_LIMIT, "EPERM", "use a kernel"),
        (
            {"hierarchy": Hierarchy(kind=CgroupKind.NONE, reason="no cgroup file system"), "cgroups": NO},
            Isolation.PIDS_LIMIT,
            "no cgroup file system",
            "sudo mount -t cgroup2",
        ),
        ({"cgroups": Trial(False, "EBUSY")}, Isolation.PIDS_LIMIT, "EBUSY", "its own words say why"),
    ],
)
def test_what_root_lacks_is_said_with_its_fix(change: dict[str, Any], prop: Isolation, detail: str, fix: str) -> None:
    finding = isolation_report(attrs.evolve(ROOT_ON_V2, **change)).findings[prop]
    assert not finding.achieved
    assert detail in finding.detail
    assert finding.fix is not None
    assert finding.fix.startswith(fix)


def test_swap_that_is_not_limited_is_said() -> None:
    finding = isolation_report(attrs.evolve(ROOT_ON_V2, swap_limit=False)).findings[Isolation.MEMORY_LIMIT]
    assert finding.achieved
    assert "swap is not limited" in finding.detail


def test_gvisor_has_its_own_kernel_and_no_tree_kill() -> None:
    facts = attrs.evolve(ROOT_ON_V2, runtime=RuntimeFacts(name="/usr/bin/runsc", path="/usr/bin/runsc", version="x"))
    assert missing(facts) == {Isolation.TREE_KILL}


def test_options_of_the_runtimes() -> None:
    def flags(name: str, with_cgroups: bool) -> list[str]:
        return RuntimeFacts(name=name, path=name).flags(with_cgroups=with_cgroups)

    assert flags("crun", True) == flags("runc", True) == flags("runc", False) == []
    assert flags("/opt/bin/crun", False) == ["--cgroup-manager=disabled"]
    assert flags("runsc", True) == ["--network=none"]
    assert "--network=none" in flags("runsc", False)


def test_one_cause_is_one_detail_and_one_fix() -> None:
    no = Trial(False, "sandboxes need the small program launch.c, and it cannot be compiled here (no compiler)")
    facts = attrs.evolve(ROOT_ON_V2, container=no, cgroups=no, userns=no, overlay=no, idmap=no, loop=no, inotify=no)
    report = isolation_report(facts)
    lacking = [finding for prop, finding in report.findings.items() if prop is not Isolation.GUEST_KERNEL]
    assert len({(finding.detail, finding.fix) for finding in lacking}) == 1
