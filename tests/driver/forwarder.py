"""Forward frames between two TAP devices, late, incomplete or slowly, as `netem` does where the kernel has it.

    python forwarder.py FIRST SECOND

Makes the devices in its network namespace, prints a line, and reads conditions as lines of JSON from its input:
`delay_s` and `loss` (a probability) apply to each frame, `bytes_per_s` to each direction. Frames for which a
direction has no room within QUEUE_S are dropped, as a router drops them.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import sys
import time

# linux/if_tun.h
_SET_INTERFACE = 0x400454CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
QUEUE_S = 0.4


def open_tap(name: str) -> int:
    """Make a TAP device; return the descriptor through which its frames come and go."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        descriptor, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER)
    )
    return descriptor


class Forwarder:
    """Frames on their way between two descriptors, and the conditions they meet."""

    def __init__(self, first: int, second: int) -> None:
        self._other = {first: second, second: first}
        # Earliest time at which each direction can take another frame.
        self._free_at = {first: 0.0, second: 0.0}
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._random = random.Random(0)
        self.conditions = {"delay_s": 0.0, "loss": 0.0, "bytes_per_s": 0.0}

    def take(self, descriptor: int) -> None:
        """Take the frames that have arrived at a descriptor."""
        try:
            while True:
                self._send_later(self._other[descriptor], os.read(descriptor, 65536))
        # No more frames, or the device is down.
        except OSError:
            return

    def _send_later(self, out: int, frame: bytes) -> None:
        now, rate = time.monotonic(), self.conditions["bytes_per_s"]
        if self._random.random() < self.conditions["loss"]:
            return
        starts = max(now, self._free_at[out]) if rate else now
        if starts - now > QUEUE_S:
            return
        self._free_at[out] = starts + (len(frame) / rate if rate else 0.0)
        self._count += 1
        due = self._free_at[out] + self.conditions["delay_s"]
        heapq.heappush(self._under_way, (due, self._count, out, frame))

    def send_due(self) -> float | None:
        """Send the frames that are due; return the seconds until the next one, None without one."""
        while self._under_way and self._under_way[0][0] <= time.monotonic():
            *_, out, frame = heapq.heappop(self._under_way)
            try:
                os.write(out, frame)
            # The device is down, so the frame is lost.
            except OSError:
                continue
        return max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None


def main(first: str, second: str) -> None:
    """Forward until the input ends."""
    ends = open_tap(first), open_tap(second)
    forwarder = Forwarder(*ends)
    print("ready", flush=True)
    selector = selectors.DefaultSelector()
    for descriptor in (*ends, sys.stdin.fileno()):
        selector.register(descriptor, selectors.EVENT_READ)
    wait_s = None
    while True:
        for key, _ in selector.select(wait_s):
            if key.fd in ends:
                forwarder.take(key.fd)
                continue
            line = os.read(key.fd, 4096)
            if not line:
                return
            forwarder.conditions |= json.loads(line.splitlines()[-1])
        wait_s = forwarder.send_due()


if __name__ == "__main__":
    main(*sys.argv[1:])
