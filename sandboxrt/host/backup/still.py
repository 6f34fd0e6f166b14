"""A program of its own: lets the file system of a sandbox's disk stand still until its standard input ends.

It is what stands between a backup that dies and a sandbox that stands still for ever, so it does nothing else, imports
nothing of the package, and ignores the signals that end a terminal's programs together.

Source: ``FIFREEZE`` and ``FITHAW`` of linux/fs.h: what was written is on the disk, and whoever writes waits.
"""

import fcntl
import os
import select
import signal
import sys

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878


def main(folder: str, device: str, limit_s: str) -> int:
    """Freeze what ``folder`` is on if that is ``device``; thaw at the end of the input, or after so many seconds."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.fstat(fd).st_dev != int(device):
        sys.stderr.write("it is on another file system")
        return 2
    fcntl.ioctl(fd, FIFREEZE, 0)
    try:
        os.write(1, b"still\n")
        ended, _, _ = select.select([0], [], [], float(limit_s))
    finally:
        fcntl.ioctl(fd, FITHAW, 0)
    # A copy that went on after the thaw is of no single instant.
    return 0 if ended else 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
