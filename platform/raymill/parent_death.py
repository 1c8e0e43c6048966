"""Processes that end with the one that started them, and that it may look into."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# linux/prctl.h
_SET_PDEATHSIG = 1
_SET_PTRACER = 0x59616D61


def die_with(parent: int) -> None:
    """Be killed when the parent dies, however busy or stopped; elsewhere than on Linux other signs must do."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)


def show_stack_to(process: int) -> None:
    """Let a process, and those it starts, read this one's stack, where Yama asks for leave
    (`kernel.yama.ptrace_scope=1`); a kernel without it refuses the call, and nothing is lost."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_SET_PTRACER, process, 0, 0, 0)
