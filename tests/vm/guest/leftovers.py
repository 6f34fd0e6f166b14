"""What this machine has that could be a sandbox's: written down before everything, compared after it.

Run as root, as ``python -m tests.vm.guest.leftovers before|after FILE``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import attrs

from tests.leaks import Footprint
from tests.vm.guest.report import Report, expect

SETTLE_S = 30
# A login of the check itself comes and goes.
_OF_THE_MOMENT = ("processes", "descriptors", "mounts")


def _of_the_machine() -> dict[str, list[str]]:
    footprint = Footprint.take()
    found = {name: sorted(value) for name, value in attrs.asdict(footprint).items() if name not in _OF_THE_MOMENT}
    found["processes"] = sorted({line.split(" ", 1)[1] for line in footprint.processes})
    # Those of logins (/run/user/1000) come and go.
    mounts = {line.split()[4] for line in footprint.mounts}
    found["mounts"] = sorted(mount for mount in mounts if not mount.startswith("/run/"))
    found["loops"] = sorted(path.parts[3] for path in Path("/sys/block").glob("loop*/loop/backing_file"))
    found["devices"] = sorted(os.listdir("/dev"))
    return found


def main() -> int:
    """Write the file, or compare with it; the exit code says whether nothing is left."""
    when, file = sys.argv[1], Path(sys.argv[2])
    if when == "before":
        file.write_text(json.dumps(_of_the_machine()))
        return 0
    before = json.loads(file.read_text())
    report = Report("after everything")

    def nothing_left() -> str:
        end = time.monotonic() + SETTLE_S
        while left := {
            name: more for name, now in _of_the_machine().items() if (more := sorted(set(now) - set(before[name])))
        }:
            # Loop devices are made for good; only bound ones are somebody's.
            left.pop("devices", None) if all(name.startswith("loop") for name in left.get("devices", ())) else None
            if not left:
                break
            expect(time.monotonic() < end, f"left: {left}")
            time.sleep(0.5)
        return "no group, loop device, mount, device or process of a sandbox's more than before"

    report.check("nothing is left", nothing_left)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
