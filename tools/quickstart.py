"""The main job, once: a sandbox on this machine, code that we do not trust, and what came of it."""

from __future__ import annotations

import os
import time

from sandboxrt import IsolationError, SandboxClient

UNTRUSTED = r"""
import os, platform, socket
print("hello from", platform.node(), "as uid", os.getuid())
print("the processes that I see:", sorted(name for name in os.listdir("/proc") if name.isdigit()))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    print("the network is closed:", error.strerror)
try:
    open("/proc/sys/kernel/core_pattern", "w")
except OSError as error:
    print("the host's kernel settings are closed:", error.strerror)
"""


def _ms(since: float) -> str:
    return f"{(time.perf_counter() - since) * 1000:.0f} ms"


def main() -> None:
    """Run the job with all limits, or, for an ordinary user who cannot enforce some here, without those."""
    try:
        run_once(allow_unenforced_limits=False)
    except IsolationError as error:
        if os.geteuid() == 0:
            raise
        print(f"an ordinary user cannot enforce {', '.join(error.missing)} here, root can (sudo); going on without")
        run_once(allow_unenforced_limits=True)


def run_once(*, allow_unenforced_limits: bool) -> None:
    """Create a sandbox, run code in it, print what happened and how long it took."""
    with SandboxClient(mode="embedded", allow_unenforced_limits=allow_unenforced_limits) as client:
        started = time.perf_counter()
        with client.sandbox() as sandbox:
            print(f"sandbox {sandbox.name} is ready after {_ms(started)} (the first one also prepares this machine)")
            sandbox.write("/home/user/untrusted.py", UNTRUSTED)
            started = time.perf_counter()
            result = sandbox.run("python3 /home/user/untrusted.py")
            print(f"the code ran for {_ms(started)} and printed:\n")
            print(result.stdout + result.stderr)
            print(f"exit code {result.exit_code}")
            endless = sandbox.run("sleep 600", timeout=0, wait=False)
            endless.kill()
            print(f"a command that we killed ended with {endless.result.exit_code}")
    print("the sandbox is gone; nothing of it is left on this machine")


if __name__ == "__main__":
    main()
