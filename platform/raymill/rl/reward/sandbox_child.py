"""Sandbox child, which sandbox.py starts for every answer: confines itself, then runs code and tests.

It only imports the standard library, because nothing else can be read here. Once the kernel has taken the
rules, nothing in the process can loosen them, whatever the answer's code does.

Standard input is a file with two JSON objects: limits, filter and answer, whose length is the first
argument, then tests and token, which this program reads only after the answer's code has run. The token on
standard output proves that the tests finished; an exit status doesn't, because an answer could simply exit
with 0. An answer that searches the open files of its process for the token finds it.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import struct
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

CONFINED = b"confined\n"
# linux/prctl.h, linux/capability.h
_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 22, 38
_FILTER_MODE, _CAPABILITIES_3 = 2, 0x20080522
_CAPSET = {"x86_64": 126, "aarch64": 91}
_SIGKILL = 9
# linux/landlock.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_ALL_OF_ABI_1 = (1 << 13) - 1
_READ = _READ_FILE | _READ_DIR
_SCRATCH = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Read the request, confine the process, run the code; end the process."""
    length, parent = int(sys.argv[1]), int(sys.argv[2])
    _call("prctl", _libc.prctl(_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
    # The parent may have died before the line above.
    if os.getppid() != parent:
        os._exit(1)
    request, result = os.dup(0), os.dup(1)
    setup = json.loads(os.pread(request, length, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    sys.argv[:] = [""]
    os.environ.clear()
    try:
        confine(setup)
    except OSError as error:
        os.write(result, str(error).encode())
        os._exit(1)
    os.write(result, CONFINED)
    run(setup["answer"], request, length, result)


def run(answer: str, request: int, length: int, result: int) -> None:
    """Execute the answer, then the tests, in one module; write the token if the tests finish."""
    # Local references, because the answer may replace the functions in their modules.
    execute, translate, stop = builtins.exec, builtins.compile, SystemExit
    read, write, leave, decode = os.pread, os.write, os._exit, json.loads
    size = os.fstat(request).st_size
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:  # noqa: SIM105  (contextlib would be one more import)
        execute(translate(answer, "<answer>", "exec"), module.__dict__)
    except stop:
        # Scripts often end with `sys.exit(main())`; the tests decide.
        pass
    tests = decode(read(request, size, length))
    try:
        execute(translate(tests["tests"], "<tests>", "exec"), module.__dict__)
    except stop as error:
        # unittest.main() exits with 0 when all tests pass. An exit in the answer's own code doesn't count.
        if error.code or _raised_in(error.__traceback__, "<answer>"):
            leave(1)
    write(result, tests["token"].encode())
    leave(0)


def confine(setup: Mapping[str, Any]) -> None:
    """Give up every right that judged code doesn't need, irrevocably.

    Raises:
        OSError: the kernel lacks one of the features.
    """
    for name, limit in setup["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (most, most))
    _call("prctl", _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _restrict_files([*sys.path, os.path.join(sys.base_prefix, "lib"), *_LIBRARIES], os.getcwd())
    _drop_capabilities()
    _filter_system_calls(setup["filter"])


def _restrict_files(readable: Sequence[str], scratch: str) -> None:
    """Restrict file access with Landlock to reading the standard library and writing the scratch folder."""
    version = _call("landlock", _libc.syscall(_CREATE_RULESET, None, 0, 1))
    files, scratch_rights = _ALL_OF_ABI_1, _SCRATCH
    if version >= 2:
        files, scratch_rights = files | _REFER, scratch_rights | _REFER
    if version >= 3:
        files, scratch_rights = files | _TRUNCATE, scratch_rights | _TRUNCATE
    # TCP, abstract sockets and signals: the filter of system calls denies them as well.
    network = 0b11 if version >= 4 else 0
    scoped = 0b11 if version >= 6 else 0
    attributes = struct.pack("QQQ", files, network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call("landlock", _libc.syscall(_CREATE_RULESET, attributes, size, 0))
    rules = [(path, _READ) for path in readable]
    rules += [(os.devnull, _READ_FILE | _WRITE_FILE), (scratch, scratch_rights)]
    for path, rights in rules:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            # Not every system has all of these folders.
            continue
        if not os.path.isdir(path):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE
        rule = struct.pack("=Qi", rights, descriptor)
        _call("landlock", _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0))
        os.close(descriptor)
    _call("landlock", _libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _drop_capabilities() -> None:
    """Drop all capabilities, after which root has no more rights than any user."""
    header, none = struct.pack("Ii", _CAPABILITIES_3, 0), bytes(24)
    _call("capset", _libc.syscall(_CAPSET[os.uname().machine], header, none))


def _filter_system_calls(instructions: Sequence[Sequence[int]]) -> None:
    """Install the seccomp filter; the constant -1 in an instruction stands for this process's id."""
    pid = os.getpid()
    packed = b"".join(
        struct.pack("HBBI", code, true, false, pid if constant == -1 else constant)
        for code, true, false, constant in instructions
    )
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(code))
    _call("seccomp", _libc.prctl(_SET_SECCOMP, _FILTER_MODE, program, 0, 0))


def _raised_in(trace: types.TracebackType | None, filename: str) -> bool:
    """Tell whether an exception passed through code of this file."""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            return True
        trace = trace.tb_next
    return False


def _call(name: str, result: int) -> int:
    """Return a system call's result, or raise its OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    main()
