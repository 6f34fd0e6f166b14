"""What `detect` makes of the hosts that exist, from what their kernels show."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
import pytest

from sandboxrt.engine.hierarchy import READ_ONLY, CgroupKind, Hierarchy, detect, this_host

SANDBOX = "0123456789abcdef0123456789abcdef"
FS = Path("/sys/fs/cgroup")

V2_MOUNT = "34 24 0:29 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V2_ROOT_MOUNTS = f"""\
24 30 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
{V2_MOUNT},memory_recursiveprot
30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
"""
V1_MOUNTS = """\
25 20 0:21 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:8 - tmpfs tmpfs ro,mode=755
28 25 0:25 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
31 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
32 25 0:29 / /sys/fs/cgroup/memory rw,nosuid shared:16 - cgroup cgroup rw,memory
33 25 0:30 / /sys/fs/cgroup/pids rw,nosuid shared:17 - cgroup cgroup rw,pids
34 25 0:31 / /sys/fs/cgroup/freezer rw,nosuid shared:18 - cgroup cgroup rw,freezer
35 25 0:32 / /sys/fs/cgroup/cpuset rw,nosuid shared:19 - cgroup cgroup rw,cpuset,clone_children,cpuset_v2_mode
"""
HYBRID_MOUNTS = f"{V1_MOUNTS}26 25 0:22 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
USER_SERVICE = "/user.slice/user-1000.slice/user@1000.service"


def look(
    mountinfo: str,
    self_cgroup: str,
    *,
    files: dict[str, str] | None = None,
    writable: Iterable[str] | None = None,
) -> Hierarchy:
    """`writable`: folders in which everything can be written; `None` is root's view: everywhere."""
    folders = None if writable is None else {FS / each.lstrip("/") for each in writable}

    def is_writable(path: Path) -> bool:
        return folders is None or path in folders or path.parent in folders

    return detect(mountinfo, self_cgroup, read=lambda path: (files or {}).get(str(path), ""), is_writable=is_writable)


def test_root_on_a_v2_host_has_everything_at_the_top() -> None:
    files = {"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n"}
    found = look(V2_ROOT_MOUNTS, "0::/system.slice/cron.service\n", files=files)
    assert (found.kind, found.unified, found.v1, found.delegated) == (CgroupKind.V2, FS, {}, False)
    assert found.controllers == {"cpu", "memory", "pids"}
    assert found.reason == ""
    assert found.cgroups_path(SANDBOX) == f"/sandboxrt/{SANDBOX}"
    assert found.limiting_folder("memory", SANDBOX) == FS / "sandboxrt" / SANDBOX


def test_an_ordinary_login_session_on_a_v2_host_has_nothing() -> None:
    # The session's scope is root's; the user's own service manager has a subtree, but we are not in it.
    found = look(V2_ROOT_MOUNTS, "0::/user.slice/user-1000.slice/session-3.scope\n", writable=[USER_SERVICE])
    assert found.kind is CgroupKind.V2
    assert not found.usable
    assert "delegated" in found.reason


def test_inside_the_users_own_service_manager_the_subtree_can_be_used() -> None:
    own = f"{USER_SERVICE}/app.slice/run-u1.scope"
    files = {f"/sys/fs/cgroup{USER_SERVICE}/cgroup.controllers": "memory pids\n"}
    writable = [USER_SERVICE, f"{USER_SERVICE}/app.slice", own]
    found = look(V2_ROOT_MOUNTS, f"0::{own}\n", files=files, writable=writable)
    assert found.delegated
    assert found.unified == FS
    assert found.parent == f"{USER_SERVICE}/sandboxrt"
    assert found.controllers == {"memory", "pids"}
    assert found.reason == "no cgroup controller for: cpu"
    assert found.limiting_folder("cpu", SANDBOX) is None


def test_a_v1_host_has_a_tree_for_each_controller_and_shared_ones_once() -> None:
    found = look(V1_MOUNTS, "5:memory:/user.slice\n4:cpu,cpuacct:/user.slice\n1:name=systemd:/init.scope\n")
    assert found.kind is CgroupKind.V1
    assert found.unified is None
    assert found.controllers == {"cpu", "memory", "pids"}
    assert found.v1["cpu"] == found.v1["cpuacct"] == FS / "cpu,cpuacct"
    assert set(found.v1) == {"cpu", "cpuacct", "memory", "pids", "freezer", "cpuset", "name=systemd"}
    assert len(found.mounts) == len(set(found.mounts)) == 6
    assert found.limiting_folder("pids", SANDBOX) == FS / "pids" / "sandboxrt" / SANDBOX


def test_a_hybrid_host_limits_in_v1_and_kills_in_v2() -> None:
    found = look(HYBRID_MOUNTS, "5:memory:/\n0::/user.slice/session-1.scope\n")
    assert found.kind is CgroupKind.HYBRID
    assert found.unified == FS / "unified"
    assert found.controllers == {"cpu", "memory", "pids"}
    assert found.mounts[-1] == FS / "unified"
    assert found.limiting_folder("memory", SANDBOX) == FS / "memory" / "sandboxrt" / SANDBOX


def test_an_unprivileged_user_of_a_hybrid_host_has_nothing() -> None:
    found = look(HYBRID_MOUNTS, "5:memory:/\n0::/user.slice/session-1.scope\n", writable=[])
    assert found.kind is CgroupKind.HYBRID
    assert not found.usable
    assert found.mounts == ()


def test_a_container_with_a_cgroup_namespace_sees_its_own_group_as_the_root() -> None:
    files = {"/sys/fs/cgroup/cgroup.controllers": "cpu memory pids"}
    found = look(V2_ROOT_MOUNTS, "0::/\n", files=files)
    assert found.parent == "/sandboxrt"
    assert found.controllers == {"cpu", "memory", "pids"}


def test_a_container_without_a_cgroup_namespace_sees_its_group_bound_over_the_root() -> None:
    mounts = V2_ROOT_MOUNTS.replace("0:29 / /sys/fs/cgroup", "0:29 /docker/abc /sys/fs/cgroup")
    files = {"/sys/fs/cgroup/cgroup.controllers": "cpu memory pids"}
    found = look(mounts, "0::/docker/abc\n", files=files)
    assert found.parent == "/sandboxrt"
    assert found.unified == FS


def test_a_container_with_its_groups_read_only_has_none() -> None:
    found = look(V2_ROOT_MOUNTS, "0::/\n", writable=[])
    assert not found.usable


def test_a_process_outside_of_the_mounted_part_cannot_move_others_into_it() -> None:
    mounts = V2_ROOT_MOUNTS.replace("0:29 / /sys/fs/cgroup", "0:29 /docker/abc /sys/fs/cgroup")
    assert look(mounts, "0::/elsewhere\n").unified is None
    assert look(V2_ROOT_MOUNTS, "0::/../other\n").unified is None


def test_no_control_groups_at_all() -> None:
    found = look("30 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "")
    assert found == Hierarchy(kind=CgroupKind.NONE, reason="no cgroup file system is mounted")


def test_what_is_mounted_over_hides_what_was_there() -> None:
    mounts = f"{V2_ROOT_MOUNTS}99 34 0:99 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    assert look(mounts, "0::/\n").kind is CgroupKind.NONE


def test_odd_lines_and_escaped_names() -> None:
    mounts = "\n\nnonsense\n1 2 3 - \n" + V2_MOUNT.replace("/sys/fs/cgroup", r"/mnt/a\040b") + "\n"
    found = look(mounts, "garbage\n0::/\n")
    assert found.unified == Path("/mnt/a b")


def test_this_host_is_one_of_them() -> None:
    found = this_host()
    assert found.kind in CgroupKind
    assert all(mount.is_dir() for mount in found.mounts)
    assert found.usable or found.reason


def manage(own: str, *, delegated: Iterable[str] = (), writable: Iterable[str] | None = None) -> Hierarchy:
    """What is made of a v2 host where systemd rules and has given the groups of `delegated` away."""
    marked = {FS / each.lstrip("/") for each in delegated}
    folders = None if writable is None else {FS / each.lstrip("/") for each in writable}
    return detect(
        V2_ROOT_MOUNTS,
        f"0::{own}\n",
        read=lambda path: "cpu memory pids" if path.name == "cgroup.controllers" else "",
        is_writable=lambda path: folders is None or path in folders or path.parent in folders,
        is_delegated=lambda path: path in marked,
    )


SERVICE = "/system.slice/sandboxrt.service"


@pytest.mark.parametrize("own", [SERVICE, f"{SERVICE}/host", f"{SERVICE}/a/b"])
def test_sandboxes_of_a_delegated_unit_are_below_its_own_group(own: str) -> None:
    found = manage(own, delegated=[SERVICE])
    assert found.parent == f"{SERVICE}/sandboxrt"
    assert (found.unified, found.base, found.delegated, found.asks) == (FS, FS / SERVICE[1:], True, False)
    assert found.controllers == {"cpu", "memory", "pids"}


@pytest.mark.parametrize(
    ("own", "delegated"),
    [
        (SERVICE, []),
        ("/user.slice/user-0.slice/session-2.scope", ["/user.slice/user-0.slice/user@0.service"]),
        # What is above is the user's own service manager's, not ours.
        ("/user.slice/user-0.slice/user@0.service/app.slice/run-1.scope", ["/user.slice/user-0.slice/user@0.service"]),
        # In a container whose own service manager has all that it sees.
        ("/system.slice/a.service", ["/"]),
        ("/", ["/"]),
    ],
)
def test_nothing_is_made_behind_the_service_managers_back(own: str, delegated: list[str]) -> None:
    found = manage(own, delegated=delegated)
    assert found.asks
    assert not found.usable
    assert "Delegate=" in found.reason


def test_a_user_asks_its_own_service_manager_only_from_below_it() -> None:
    own = f"{USER_SERVICE}/app.slice/run-u1.scope"
    writable = [USER_SERVICE, f"{USER_SERVICE}/app.slice", own]
    assert manage(own, delegated=[USER_SERVICE], writable=writable).asks
    assert manage(own, delegated=[own], writable=writable).parent == f"{own}/sandboxrt"
    session = manage("/user.slice/user-1000.slice/session-3.scope", writable=writable)
    assert (session.asks, session.usable) == (False, False)


def test_a_group_that_was_given_by_hand_is_used_as_it_is() -> None:
    assert manage("/mine/shell", writable=["/mine", "/mine/shell"]).parent == "/mine/sandboxrt"
    inside = f"{SERVICE}/alice"
    assert manage(inside, delegated=[SERVICE], writable=[inside]).parent == f"{inside}/sandboxrt"


def test_read_only_groups_are_said_to_be() -> None:
    mounts = V2_ROOT_MOUNTS.replace("cgroup2 rw,", "cgroup2 ro,")
    found = detect(mounts, f"0::{SERVICE}\n", read=lambda _: "", is_writable=lambda _: False)
    assert (found.usable, found.reason) == (False, READ_ONLY)


@pytest.mark.parametrize("found", [this_host(), manage(SERVICE, delegated=[SERVICE]), look(V1_MOUNTS, "5:memory:/\n")])
def test_where_groups_are_can_be_written_down(found: Hierarchy) -> None:
    again = Hierarchy.from_record(attrs.evolve(found, nested=True).to_record())
    assert [again.folder(mount, SANDBOX) for mount in again.mounts] == [
        found.folder(mount, SANDBOX) for mount in found.mounts
    ]
    assert again.limiting_folder("memory", SANDBOX) == found.limiting_folder("memory", SANDBOX)
    assert again.nested


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", '{"unified": null, "v1": [], "parent": "/", "nested": false}'])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Hierarchy.from_record(text)
