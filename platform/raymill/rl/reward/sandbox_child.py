"""Run as a program by sandbox.py, once for every answer: confines itself, then runs code and tests.

It is alone: nothing but the standard library can be imported here, and only this process runs. Once
the kernel has taken the rules, nothing in the process can loosen them; answers may do what they like.

Standard input is a file: a JSON object of as many bytes as the first argument says (limits, filter, the
answer), then another (tests, token), which this program reads only when the answer's own code has run.
The token on standard output says that the tests came to their end, which an exit status alone doesn't:
an answer could simply exit with 0. An answer that looks for the token among its process's files finds it.
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
from collections.abc import Sequence
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
    """Read, confine, run; ends the process."""
    length, parent = int(sys.argv[1]), int(sys.argv[2])
    _call("prctl", _libc.prctl(_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
    if os.getppid() != parent:  # it died before the line above
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
    """Execute the answer, then the tests, in one module; write the token if they came to their end."""
    # Held here, since the answer may put something else in their places.
    execute, translate, stop = builtins.exec, builtins.compile, SystemExit
    read, write, leave, decode = os.pread, os.write, os._exit, json.loads
    size = os.fstat(request).st_size
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:  # noqa: SIM105  (contextlib would be one more import)
        execute(translate(answer, "<answer>", "exec"), module.__dict__)
    except stop:  # a script's `sys.exit(main())`; the tests decide
        pass
    tests = decode(read(request, size, length))
    try:
        execute(translate(tests["tests"], "<tests>", "exec"), module.__dict__)
    except stop as error:  # unittest.main() ends so
        if error.code or _passed(error.__traceback__, "<answer>"):
            leave(1)
    write(result, tests["token"].encode())
    leave(0)


def confine(setup: dict[str, Any]) -> None:
    """Give up, for good, whatever judged code has no need of.

    Raises:
        OSError: the kernel doesn't offer one of the means.
    """
    for name, limit in setup["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (most, most))
    _call("prctl", _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _keep_to_files([*sys.path, os.path.join(sys.base_prefix, "lib"), *_LIBRARIES], os.getcwd())
    _drop_capabilities()
    _filter_system_calls(setup["filter"])


def _keep_to_files(readable: Sequence[str], scratch: str) -> None:
    """Landlock: the standard library can be read, and the scratch folder written; nothing else."""
    version = _call("landlock", _libc.syscall(_CREATE_RULESET, None, 0, 1))
    files, scratch_rights = _ALL_OF_ABI_1, _SCRATCH
    if version >= 2:
        files, scratch_rights = files | _REFER, scratch_rights | _REFER
    if version >= 3:
        files, scratch_rights = files | _TRUNCATE, scratch_rights | _TRUNCATE
    network = 0b11 if version >= 4 else 0  # TCP, beside the filter of system calls
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals, likewise
    attributes = struct.pack("QQQ", files, network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _call("landlock", _libc.syscall(_CREATE_RULESET, attributes, size, 0))
    rules = [(path, _READ) for path in readable]
    rules += [(os.devnull, _READ_FILE | _WRITE_FILE), (scratch, scratch_rights)]
    for path, rights in rules:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not every system has every folder of libraries
        if not os.path.isdir(path):
            rights &= _EXECUTE | _WRITE_FILE | _READ_FILE
        rule = struct.pack("=Qi", rights, place)
        _call("landlock", _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0))
        os.close(place)
    _call("landlock", _libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _drop_capabilities() -> None:
    """Root is then a user like any other."""
    header, none = struct.pack("Ii", _CAPABILITIES_3, 0), bytes(24)
    _call("capset", _libc.syscall(_CAPSET[os.uname().machine], header, none))


def _filter_system_calls(instructions: Sequence[Sequence[int]]) -> None:
    own = os.getpid()
    packed = b"".join(
        struct.pack("HBBI", code, true, false, own if constant == -1 else constant)
        for code, true, false, constant in instructions
    )
    code = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(code))
    _call("seccomp", _libc.prctl(_SET_SECCOMP, _FILTER_MODE, program, 0, 0))


def _passed(trace: types.TracebackType | None, filename: str) -> bool:
    """Whether an exception came through code of this file."""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            return True
        trace = trace.tb_next
    return False


def _call(what: str, returned: int) -> int:
    if returned < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return returned


if __name__ == "__main__":
    main()
