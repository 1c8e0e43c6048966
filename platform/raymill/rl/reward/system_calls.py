"""Filter of system calls for judged code, as a program for the kernel's seccomp.

Landlock (see sandbox_child.py) restricts access to files. This filter denies the rest: sockets, processes,
signals and limits of other processes, modes and owners, shared memory, and calls that expose much of the
kernel. Denied calls fail with EACCES, like a missing permission, and the code continues.

The program is classic BPF over `struct seccomp_data` (linux/seccomp.h): number, architecture, instruction
pointer, six arguments. Call numbers are those of asm/unistd_64.h and asm-generic/unistd.h.
"""

from __future__ import annotations

import errno
import platform
from dataclasses import dataclass

# Call numbers on x86_64 and on aarch64, where some calls don't exist.
DENIED: dict[str, tuple[int, int | None]] = {
    # the network, and sockets of other programs
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # other processes: making, reading, disturbing them
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # what Landlock leaves open in files: modes, owners, times, attributes, lengths
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None),
    "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "mknod": (133, None), "mknodat": (259, 33),
    # memory that outlives the process or isn't counted as its own
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # namespaces, mounts, and the kernel's larger doors
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
# "Not implemented" on both machines, so that the C library falls back to clone, whose flags can be checked.
CLONE3 = 435
# Calls from this number on are newer than this table, and also "not implemented".
KNOWN = 463
# Stands for the id of the process that installs the program.
OWN_PID = -1


@dataclass(frozen=True)
class Condition:
    """Condition that allows a call if `argument & mask` is in `values`; with `unless`, if it isn't."""

    numbers: tuple[int, int]
    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    unless: bool = False


CONDITIONS: dict[str, Condition] = {
    "clone": Condition((56, 220), 0, (0x10000,), mask=0x10000),  # CLONE_THREAD
    "kill": Condition((62, 129), 0, (OWN_PID,)),
    "tgkill": Condition((234, 131), 0, (OWN_PID,)),
    # 0 is the calling process.
    "prlimit64": Condition((302, 261), 0, (0,)),
    # SOCK_STREAM: asyncio needs a pair of streams, which can't be connected to another process.
    "socketpair": Condition((53, 199), 1, (1,), mask=0xF),
    "prctl": Condition((157, 167), 0, (1,), unless=True),  # PR_SET_PDEATHSIG
    "fcntl": Condition((72, 25), 1, (8, 10, 15), unless=True),  # F_SETOWN, F_SETSIG, F_SETOWN_EX
    # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": Condition((16, 29), 1, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),
}
AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_DENY, _MISSING = _ERRNO | errno.EACCES, _ERRNO | errno.ENOSYS
_LOAD, _AND, _RETURN, _IF_EQUAL, _IF_AT_LEAST = 0x20, 0x54, 0x06, 0x15, 0x35
# Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# Code, jump if true, jump if false, constant.
Instruction = tuple[int, int, int, int]


def program(machine: str | None = None) -> list[Instruction] | None:
    """Return the filter for this machine (or the named one), or None for an unsupported architecture."""
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCHITECTURES:
        return None
    column = list(AUDIT_ARCHITECTURES).index(machine)
    built: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, AUDIT_ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        # Also denies the numbers of x86's x32 calls.
        (_IF_AT_LEAST, 0, 1, KNOWN),
        (_RETURN, 0, 0, _MISSING),
        (_IF_EQUAL, 0, 1, CLONE3),
        (_RETURN, 0, 0, _MISSING),
    ]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            built += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    for condition in CONDITIONS.values():
        built += _conditional(condition, condition.numbers[column])
    return [*built, (_RETURN, 0, 0, _ALLOW)]


def _conditional(condition: Condition, number: int) -> list[Instruction]:
    """Return instructions that deny or allow this call, and skip to their end for any other."""
    on_value, otherwise = (_DENY, _ALLOW) if condition.unless else (_ALLOW, _DENY)
    decisions: list[Instruction] = []
    for value in condition.values:
        decisions += [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, on_value)]
    body: list[Instruction] = [
        # Arguments have 64 bits, of which these calls read the lower 32; both machines store those first.
        (_LOAD, 0, 0, _ARGUMENTS + 8 * condition.argument),
        (_AND, 0, 0, condition.mask),
        *decisions,
        (_RETURN, 0, 0, otherwise),
    ]
    return [(_IF_EQUAL, 0, len(body), number), *body]
