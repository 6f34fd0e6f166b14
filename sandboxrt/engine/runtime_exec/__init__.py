"""The second exec strategy: jobs by the runtime's own ``exec``, for containers that take no passed descriptors.

The contract is the one of ``engine/base.py``. Each job is one ``<runtime> exec`` of the relay (``init/relay.h``): the
same static program as the init, with which the host speaks in frames over one socket. gVisor needs it, because its
containers get standard input and output from the host and nothing else.
"""

from __future__ import annotations

from sandboxrt.engine.runtime_exec.channel import ExecChannel
from sandboxrt.engine.runtime_exec.relay import STDIO_FD, RuntimeExec
from sandboxrt.engine.runtime_exec.strategy import STRATEGY_VARIABLE, ExecStrategy

__all__ = ["STDIO_FD", "STRATEGY_VARIABLE", "ExecChannel", "ExecStrategy", "RuntimeExec"]
