"""What refusals come from, told from words that kernels and tools have really said, and from where we are."""

from __future__ import annotations

import attrs
import pytest

from sandboxrt.engine.causes import Surroundings, explain
from sandboxrt.engine.hierarchy import READ_ONLY

ROOT = Surroundings(state_dir="/var/lib/sandboxrt", file_system="tmpfs", kernel="6.1.0", launcher="/opt/launch")
USER = attrs.evolve(ROOT, user="alice", is_root=False)
UNIT = attrs.evolve(ROOT, unit="sandboxrt.service", own_devices=True, covered=True)
CONTAINER = attrs.evolve(ROOT, is_container=True, own_devices=True, covered=True)
APPARMOR = attrs.evolve(USER, closed=("kernel.apparmor_restrict_unprivileged_userns",))
PROC_CRUN = "crun 1.21 does not run a container here: mount `proc` to `proc`: Operation not permitted"
PROC_RUNC = 'error mounting "proc" to rootfs at "/proc": mount proc:/proc, flags: 0xe: operation not permitted'
OPENAT2 = "mount point: /var/lib/sandboxrt/probe-x/mounted: Function not implemented"


@pytest.mark.parametrize(
    ("words", "around", "fix"),
    [
        ("sandboxes need launch.c, and it cannot be compiled here (none of cc, gcc)", ROOT, "sudo apt-get install gcc"),
        ("launch.c, and it cannot be compiled here ([Errno 28] No space left on device)", ROOT, "free space there"),
        ("launch.c, and compiling it took too long (cc did not end within 300 s)", ROOT, "try again"),
        ("no space left on this host for the disk of a sandbox, below /x", ROOT, "free space there: df -h"),
        ("write: init: No space left on device", ROOT, "free space there"),
        ("newuidmap and newgidmap are missing (newuidmap)", USER, "sudo apt-get install uidmap"),
        ("/etc/subuid has no range of 65536 ids for alice", USER, "sudo usermod --add-subuids 100000-165535"),
        ("namespace: user: Permission denied", APPARMOR, "printf 'abi"),
        ("crun: namespace: /: Permission denied", APPARMOR, "printf 'abi"),
        ("namespace: /: Permission denied", USER, "allow /opt/launch its user namespaces"),
        (
            "namespace: user: No space left on device",
            attrs.evolve(USER, closed=("user.max_user_namespaces",)),
            "sudo sysctl -w user.max_user_namespaces=65536",
        ),
        (
            "namespace: user: Operation not permitted",
            attrs.evolve(USER, closed=("kernel.unprivileged_userns_clone",)),
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            "namespace: user: Operation not permitted",
            UNIT,
            "sudo systemctl edit sandboxrt.service, and set RestrictNam",
        ),
        (
            "newuidmap: newuidmap: write to uid_map failed: Operation not permitted",
            attrs.evolve(UNIT, is_root=False, no_new_privileges=True),
            "sudo systemctl edit sandboxrt.service, and set NoNewPrivileges=no",
        ),
        (OPENAT2, UNIT, "sudo systemctl edit sandboxrt.service, and set RestrictSUIDSGID=no"),
        (OPENAT2, ROOT, "use Linux 5.10 or newer"),
        (
            "crun 1.8.1 does not run a container here: sethostname: Operation not permitted",
            UNIT,
            "sudo systemctl edit sandboxrt.service, and set ProtectHostname=no",
        ),
        (PROC_CRUN, UNIT, "sudo systemctl edit sandboxrt.service, and set ProtectKernelTunables=no"),
        (PROC_RUNC, UNIT, "sudo systemctl edit sandboxrt.service, and set ProtectKernelTunables=no"),
        (
            "put: /proc/sys/user/max_inotify_instances: Read-only file system",
            UNIT,
            "sudo systemctl edit sandboxrt.service, and set ProtectKernelTunables=no",
        ),
        (PROC_CRUN, CONTAINER, "start the container that this is in with --security-opt systempaths=unconfined"),
        (
            "disk: /dev/loop-control: No such file or directory",
            UNIT,
            "sudo systemctl edit sandboxrt.service, and set Pri",
        ),
        ("disk: /dev/loop-control: No such file or directory", CONTAINER, "give the container"),
        ("disk: /dev/loop-control: No such file or directory", ROOT, "sudo modprobe loop"),
        (
            "disk: /dev/loop-control: Operation not permitted",
            UNIT,
            "sudo systemctl edit sandboxrt.service, and set Device",
        ),
        ("mkfs.ext4 is missing; install it with: apt-get install e2fsprogs", ROOT, "sudo apt-get install e2fsprogs"),
        ("ext4: data: No such device", ROOT, "sudo modprobe ext4"),
        ("overlay: root: No such device", ROOT, "sudo modprobe overlay"),
        ("idmap: mount_setattr: Invalid argument", ROOT, "use a state folder, and folders for layers, on one"),
        (READ_ONLY, UNIT, "sudo systemctl edit sandboxrt.service, and set ProtectControlGroups=no"),
        (READ_ONLY, CONTAINER, "start the container that this is in with writable"),
        (
            "this user may write to no cgroup (none was delegated)",
            UNIT,
            "sudo systemctl edit sandboxrt.service, and set Del",
        ),
        (
            "folder: /var/lib/sandboxrt/x: Read-only file system",
            UNIT,
            "sudo systemctl edit sandboxrt.service, and set Read",
        ),
        ("folder: /var/lib/sandboxrt/x: Read-only file system", ROOT, "use another folder"),
    ],
)
def test_the_cause_decides_the_fix(words: str, around: Surroundings, fix: str) -> None:
    cause = explain(words, around)
    assert cause is not None
    assert cause.what
    assert cause.fix.startswith(fix), cause.fix


@pytest.mark.parametrize("words", ["", "it rains", "the control group above goes away again and again"])
def test_what_is_not_known_is_not_guessed(words: str) -> None:
    assert [explain(words, around) for around in (ROOT, USER, UNIT, CONTAINER)] == [None] * 4


def test_a_users_own_service_is_edited_by_the_user() -> None:
    cause = explain(OPENAT2, attrs.evolve(UNIT, systemctl="systemctl --user"))
    assert cause is not None
    assert cause.fix.startswith("systemctl --user edit sandboxrt.service")


def test_nobody_is_told_to_change_the_machine_for_what_a_unit_forbids() -> None:
    said = [explain(words, UNIT) for words in (OPENAT2, PROC_CRUN, READ_ONLY, "disk: /dev/loop-control: No such file")]
    for cause in said:
        assert cause is not None
        assert "modprobe" not in cause.fix
        assert "/sys/fs/cgroup" not in cause.fix
