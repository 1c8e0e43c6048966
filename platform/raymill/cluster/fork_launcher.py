"""Stand-in for a Python process that `fork_server.py` forks: ends as it does, and is killed with
it.

    python -I -S fork_launcher.py SOCKET PYTHON [OPTION …] SCRIPT [ARGUMENT …]

Ray runs this in place of Python. It imports next to nothing, so that it starts in milliseconds.
Calls that the server can't serve, or all if there is no server, are passed to PYTHON itself.
"""

import marshal
import os
import sys

# Options that make no difference to a fork, whose output is unbuffered anyway.
_HARMLESS = ("-u",)


def main(path: str, python: str, *arguments: str) -> int:
    """Start a forked process and end as it ends."""
    import _socket

    command = list(arguments)
    while command and command[0] in _HARMLESS:
        del command[0]
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        if not command or command[0].startswith("-"):
            raise OSError("options are for an interpreter")
        server.connect(path)
        request = marshal.dumps((command, dict(os.environ), os.getcwd()))
        streams = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
        # The server's fork must use this process's own input and output.
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)
        server.sendmsg([len(request).to_bytes(4, "little")], [rights])
        server.sendall(request)
        if not server.recv(1):
            raise OSError("the server has ended, or forks no more")
    except OSError:
        os.execv(python, [python, *arguments])
    try:
        status = server.recv(4)
    except OSError:
        status = b""
    # Without a status, the server was killed, and all its forks with it.
    if not status:
        return 1
    return end_as(os.waitstatus_to_exitcode(int.from_bytes(status, "little")))


def end_as(code: int) -> int:
    """Die by the signal that a negative exit code stands for; return other codes."""
    if code >= 0:
        return code
    # Imported late, since most processes end without a signal.
    import resource
    import signal

    number = -code
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    # The forked process has already written a core dump, if it should.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
