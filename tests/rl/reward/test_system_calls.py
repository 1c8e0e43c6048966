"""The filter's table against the kernel's headers, and its program against an interpreter of its own."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from raymill.rl.reward.system_calls import (
    AUDIT_ARCHITECTURES,
    CONDITIONS,
    DENIED,
    program,
)

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
YOUNGER = {"fchmodat2"}  # than many a header
ALLOW, DENY, MISSING, KILL = 0x7FFF0000, 0x50000 | errno.EACCES, 0x50000 | errno.ENOSYS, 1 << 31


def verdict(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Interpret the program as seccomp(2) describes it."""
    instructions = program(machine)
    assert instructions is not None
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = {0: number, 4: AUDIT_ARCHITECTURES[machine] if architecture is None else architecture}
    data |= {16 + 8 * place: value & 0xFFFFFFFF for place, value in enumerate(padded)}
    place = accumulator = 0
    while True:
        code, true, false, constant = instructions[place]
        place += 1
        if code == 0x20:
            accumulator = data[constant]
        elif code == 0x54:
            accumulator &= constant
        elif code == 0x15:
            place += true if accumulator == constant else false
        elif code == 0x35:
            place += true if accumulator >= constant else false
        else:
            assert code == 0x06
            return constant


@pytest.mark.parametrize("column", [0, 1])
def test_numbers_are_those_of_the_headers(column: int) -> None:
    header = list(HEADERS.values())[column]
    if not header.exists():
        pytest.skip(f"no {header}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    expected = {name: int(number) for name, number in found}
    ours = {name: numbers[column] for name, numbers in DENIED.items() if name not in YOUNGER}
    ours |= {name: condition.numbers[column] for name, condition in CONDITIONS.items()}
    assert ours == {name: expected.get(name) for name in ours}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_program_denies_what_the_table_says(machine: str) -> None:
    column = list(HEADERS).index(machine)
    denied = {numbers[column] for numbers in DENIED.values()} - {None}
    conditional = {condition.numbers[column] for condition in CONDITIONS.values()}
    for number in range(463):
        if number not in conditional:
            expected = MISSING if number == 435 else DENY if number in denied else ALLOW
            assert verdict(machine, number) == expected, number
    for number in (463, 10_000, 0x40000000 | 1):
        assert verdict(machine, number) == MISSING
    assert verdict(machine, 0, architecture=0x40000003) == KILL  # 32-bit code


@pytest.mark.parametrize("machine", HEADERS)
@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("clone", (0x3D0F00,), True),  # what glibc gives for a thread
        ("clone", (0x01200011,), False),  # for a process
        ("kill", (1, 9), False), ("kill", (0, 9), False),
        ("tgkill", (1, 1, 9), False),
        ("prlimit64", (0, 7), True), ("prlimit64", (1, 7), False),
        ("socketpair", (1, 1 | 0o2000000), True), ("socketpair", (1, 2), False),
        ("prctl", (15,), True), ("prctl", (1,), False),
        ("fcntl", (3, 2), True), ("fcntl", (3, 8), False), ("fcntl", (3, 10), False),
        ("ioctl", (3, 0x5421), True), ("ioctl", (3, 0x5412), False),  # not TIOCSTI
    ],
)  # fmt: skip
def test_conditions(machine: str, name: str, arguments: tuple[int, ...], allowed: bool) -> None:
    number = CONDITIONS[name].numbers[list(HEADERS).index(machine)]
    assert verdict(machine, number, *arguments) == (ALLOW if allowed else DENY)


def test_other_machines_have_no_program() -> None:
    assert program("riscv64") is None
