"""Stands for a Python process that `fork_server.py` forks: ends as it does, and is killed with it.

    python -I -S fork_launcher.py SOCKET PYTHON [OPTION …] SCRIPT [ARGUMENT …]

Ray runs this in place of Python. It imports next to nothing, so that it is there in milliseconds. What the
server can't do, and all if there is none, is done by PYTHON itself.
"""

import marshal
import os
import sys

# Options that make no difference to a fork: its output is unbuffered anyway.
_HARMLESS = ("-u",)


def main(path: str, python: str, *arguments: str) -> int:
    """End as the process that was forked ends."""
    import _socket

    wanted = list(arguments)
    while wanted and wanted[0] in _HARMLESS:
        del wanted[0]
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        if not wanted or wanted[0].startswith("-"):
            raise OSError("options are for an interpreter")
        server.connect(path)
        request = marshal.dumps((wanted, dict(os.environ), os.getcwd()))
        streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)
        server.sendmsg([len(request).to_bytes(4, "little")], [rights])
        server.sendall(request)
        if not server.recv(1):
            raise OSError("it ended, or forks no more")
    except OSError:
        os.execv(python, [python, *arguments])
    try:
        status = server.recv(4)
    except OSError:
        status = b""
    if not status:  # the server was killed, and with it all that it forked
        return 1
    return end_as(os.waitstatus_to_exitcode(int.from_bytes(status, "little")))


def end_as(code: int) -> int:
    """Die by the signal that a negative exit code stands for; return others."""
    if code >= 0:
        return code
    import resource
    import signal

    number = -code
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    # The process has left its own memory, if it was to.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
