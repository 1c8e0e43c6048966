"""Processes that end with their parent, and that it may inspect."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# linux/prctl.h
_SET_PDEATHSIG = 1
_SET_PTRACER = 0x59616D61


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, even if it is busy or stopped; Linux
    only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before the call above.
    if os.getppid() != parent:
        os._exit(0)


def show_stack_to(process: int) -> None:
    """Let a process and its children read this process's stack.

    Yama requires permission for that (`kernel.yama.ptrace_scope=1`); a kernel without Yama rejects
    the call, which does no harm.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PTRACER, process, 0, 0, 0)
