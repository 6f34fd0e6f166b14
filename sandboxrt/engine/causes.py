"""What keeps sandboxes from running, told from the words of the kernel and of tools, and what gets it out of the way.

This is the one place for both: the doctor's findings, a create that is refused and a start that failed say the same.
The words alone do not tell: the same refusal comes from a service's unit, from a container that we are in, or from the
machine. So :class:`Surroundings` are looked at, too. What helps in one of them does harm in another: nobody may be
told to load a kernel module because a unit hides devices.

The fixes are commands for Debian and Ubuntu.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs

from sandboxrt.engine.hierarchy import READ_ONLY

__all__ = ["Cause", "Surroundings", "explain"]

_IDS = "100000-165535"


@attrs.frozen
class Cause:
    """Why something does not work, in a few words, and what to do about it."""

    what: str
    fix: str


@attrs.frozen(kw_only=True)
class Surroundings:
    """What surrounds this process, as far as it decides what a refusal comes from.

    Attributes:
        user: The user's name, or number.
        is_root: Whether it is root outside of any user namespace.
        unit: The systemd service that this process is of, or empty.
        systemctl: How its settings are reached.
        is_container: Whether it is in somebody else's container.
        no_new_privileges: Whether set-user-id programs gain nothing here.
        closed: Settings of the kernel (``sysctl`` names) that keep this user from user namespaces, as they stand.
        covered: Whether parts of ``/proc`` are mounted over.
        own_devices: Whether ``/dev`` is not the machine's.
        file_system: The type of the state folder's.
        state_dir: That folder.
        launcher: The program that prepares sandboxes.
        kernel: The kernel's release.
    """

    user: str = "root"
    is_root: bool = True
    unit: str = ""
    systemctl: str = "sudo systemctl"
    is_container: bool = False
    no_new_privileges: bool = False
    closed: tuple[str, ...] = ()
    covered: bool = False
    own_devices: bool = False
    file_system: str = ""
    state_dir: str = ""
    launcher: str = ""
    kernel: str = ""

    def in_unit(self, setting: str) -> str:
        """Where a setting of this process's service goes."""
        return f"{self.systemctl} edit {self.unit}, and set {setting} there in [Service]; then restart it"


@attrs.frozen
class _Rule:
    """Words that tell a cause: the first rule that fits gives it."""

    words: str
    tell: Callable[[Surroundings, re.Match[str]], Cause | None]


def explain(words: str, around: Surroundings) -> Cause | None:
    """The cause of a refusal, where it can be told.

    Args:
        words: What the kernel or a tool said.
        around: Where this process is.
    """
    for rule in _RULES:
        found = re.search(rule.words, words)
        if found:
            cause = rule.tell(around, found)
            if cause is not None:
                return cause
    return None


def _always(what: str, fix: str) -> Callable[[Surroundings, re.Match[str]], Cause | None]:
    return lambda around, _: Cause(what.format(around=around), fix.format(around=around))


def _user_namespaces(around: Surroundings, found: re.Match[str]) -> Cause | None:
    apparmor = "kernel.apparmor_restrict_unprivileged_userns"
    if apparmor in around.closed:
        return Cause(
            f"AppArmor restricts the user namespaces of ordinary users here ({apparmor}=1)",
            f"printf 'abi <abi/4.0>,\\nprofile sandboxrt {around.launcher} flags=(unconfined) {{\\n userns,\\n}}\\n'"
            " | sudo tee /etc/apparmor.d/sandboxrt && sudo apparmor_parser -r /etc/apparmor.d/sandboxrt; "
            f"or, for all programs and until the next boot: sudo sysctl -w {apparmor}=0",
        )
    if around.closed:
        values = {"user.max_user_namespaces": 65536}
        settings = " ".join(f"{name}={values.get(name, 1)}" for name in around.closed)
        return Cause("this user may not make user namespaces", f"sudo sysctl -w {settings}")
    if around.unit:
        return Cause(f"{around.unit} may not make namespaces", around.in_unit("RestrictNamespaces=no"))
    return None


def _forbidden_mounts(around: Surroundings, found: re.Match[str]) -> Cause | None:
    """A user namespace was made, and what it is for was refused: that is what security modules do."""
    return _user_namespaces(around, found) or (
        None
        if around.is_root
        else Cause(
            "a security module (AppArmor, SELinux) lets this user make user namespaces and forbids mounts in them",
            f"allow {around.launcher} its user namespaces in that module's rules; sudo journalctl -k has the refusal",
        )
    )


def _no_rights(around: Surroundings, found: re.Match[str]) -> Cause | None:
    if around.no_new_privileges:
        what = "set-user-id programs gain nothing here (no_new_privs), so newuidmap cannot map ids"
        if around.unit:
            return Cause(what, around.in_unit("NoNewPrivileges=no, and nothing that implies it"))
        return Cause(what, "start without no_new_privs, e.g. without --security-opt no-new-privileges")
    return None


def _proc(around: Surroundings, found: re.Match[str]) -> Cause | None:
    if not around.covered:
        return None
    what = "parts of /proc are mounted over, and where they are the kernel gives nobody a new one"
    if around.unit:
        return Cause(
            what, around.in_unit("ProtectKernelTunables=no, ProtectHostname=no, ProtectKernelLogs=no, ProcSubset=all")
        )
    return Cause(
        what, "start the container that this is in with --security-opt systempaths=unconfined (Docker) or unmask=ALL"
    )


def _proc_read_only(around: Surroundings, found: re.Match[str]) -> Cause | None:
    what = "settings of the kernel (/proc/sys) are read-only here, those of a sandbox's own namespaces, too"
    if around.unit:
        return Cause(what, around.in_unit("ProtectKernelTunables=no"))
    return Cause(what, "start the container that this is in with a writable /proc/sys, e.g. with --privileged")


def _host_name(around: Surroundings, found: re.Match[str]) -> Cause | None:
    if not around.unit:
        return None
    return Cause("no host name may be set here, not even a sandbox's own", around.in_unit("ProtectHostname=no"))


def _loop_missing(around: Surroundings, found: re.Match[str]) -> Cause | None:
    what = "there is no /dev/loop-control"
    if around.own_devices and around.unit:
        return Cause(f"{what}: the devices of {around.unit} are its own", around.in_unit("PrivateDevices=no"))
    if around.own_devices or around.is_container:
        return Cause(
            what, "give the container that this is in the machine's loop devices, or start it with --privileged"
        )
    return Cause(what, "sudo modprobe loop")


def _loop_refused(around: Surroundings, found: re.Match[str]) -> Cause | None:
    what = "loop devices may not be opened here"
    if around.unit:
        rules = (
            "DeviceAllow=/dev/loop-control rw and DeviceAllow=block-loop rw, or DevicePolicy=auto and ProtectClock=no"
        )
        return Cause(what, around.in_unit(rules))
    if around.is_container:
        return Cause(what, "start the container that this is in with --privileged, or with rules for loop devices")
    return None


def _no_openat2(around: Surroundings, found: re.Match[str]) -> Cause | None:
    what = "the system call openat2 is refused here"
    if around.unit:
        return Cause(what, around.in_unit("RestrictSUIDSGID=no (and no DynamicUser=, which implies it)"))
    return Cause(f"{what} (kernel {around.kernel})", "use Linux 5.10 or newer, and no filter that refuses openat2")


def _idmap(around: Surroundings, found: re.Match[str]) -> Cause | None:
    if not around.is_root:
        return None
    is_named = found[1].startswith("/")
    where, kind = (found[1], "") if is_named else (around.state_dir, f", {around.file_system}")
    return Cause(
        f"the file system of {where} cannot be mapped to a sandbox's ids by this kernel ({around.kernel}{kind})",
        "use a state folder, and folders for layers, on one that can: ext4, xfs, btrfs, or tmpfs from Linux 6.3 on",
    )


def _read_only_groups(around: Surroundings, found: re.Match[str]) -> Cause | None:
    if around.unit:
        return Cause(
            f"the control groups of {around.unit} are read-only",
            around.in_unit("ProtectControlGroups=no, Delegate=yes"),
        )
    return Cause(
        "the control groups are mounted read-only", "start the container that this is in with writable control groups"
    )


def _not_given(around: Surroundings, found: re.Match[str]) -> Cause | None:
    if around.unit:
        return Cause(f"systemd gave {around.unit} no control groups of its own", around.in_unit("Delegate=yes"))
    if around.is_root:
        return Cause("systemd gave no control groups", "start with: sudo systemd-run --scope -p Delegate=yes ...")
    return None


def _read_only_folder(around: Surroundings, found: re.Match[str]) -> Cause | None:
    what = f"{around.state_dir} is read-only here"
    if around.unit:
        return Cause(what, around.in_unit(f"ReadWritePaths={around.state_dir} (or StateDirectory=)"))
    return Cause(what, "use another folder: --state-dir DIR")


_RULES = (
    _Rule(
        r"compiling it took too long",
        _always("this machine is too busy to compile a small C program", "try again when it has less to do"),
    ),
    _Rule(
        r"cannot be compiled here(?!.*(No space left|Read-only file))",
        _always(
            "sandboxes need a small C program, and there is no compiler for it", "sudo apt-get install gcc libc6-dev"
        ),
    ),
    _Rule(
        r"^(?!.*namespace: ).*([Nn]o space left|DiskFull)",
        _always("the file system of {around.state_dir} is full", "free space there: df -h {around.state_dir}"),
    ),
    _Rule(
        r"newuidmap and newgidmap are missing",
        _always("newuidmap and newgidmap are missing", "sudo apt-get install uidmap"),
    ),
    _Rule(
        r"/etc/sub[ug]id has no range",
        _always(
            "{around.user} has no subordinate ids in /etc/subuid and /etc/subgid",
            f"sudo usermod --add-subuids {_IDS} --add-subgids {_IDS} {{around.user}} "
            "(another free range if it is taken)",
        ),
    ),
    _Rule(r"new[ug]idmap: ", _no_rights),
    _Rule(r"may not make user namespaces|namespace: user: ", _user_namespaces),
    _Rule(r"namespace: /: ", _forbidden_mounts),
    _Rule(r"mount point: .*Function not implemented|openat2.*(not implemented|ENOSYS)", _no_openat2),
    _Rule(r"/proc/\S*: Read-only file system", _proc_read_only),
    _Rule(r"mount `?proc`? to `?/?proc`?: |mounting \"?proc\"? to rootfs at \"?/proc", _proc),
    _Rule(r"sethostname: Operation not permitted", _host_name),
    _Rule(r"/dev/loop-control: No such file", _loop_missing),
    _Rule(r"disk: (/dev/loop\S*|LOOP\w+): (Operation not permitted|Permission denied)", _loop_refused),
    _Rule(
        r"mkfs\.ext4 is missing|e2fsck is missing", _always("mkfs.ext4 is missing", "sudo apt-get install e2fsprogs")
    ),
    _Rule(r"ext4: .*No such device", _always("this kernel has no ext4", "sudo modprobe ext4")),
    _Rule(r"overlay: .*No such device", _always("this kernel has no overlay file system", "sudo modprobe overlay")),
    _Rule(r"idmap: (\S+): Invalid argument", _idmap),
    _Rule(re.escape(READ_ONLY), _read_only_groups),
    _Rule(r"control groups here are systemd's", _not_given),
    _Rule(r"none was delegated", lambda around, found: _not_given(around, found) if around.unit else None),
    _Rule(r"Read-only file system", _read_only_folder),
)
