"""Join a group of two ranks over gloo, without Ray, and print the sum of both ranks' ones.

    python gloo_alone.py RANK STORE_ADDRESS [NODE_ADDRESS]

With the address of its node, the rank's interface is found; without it, torch chooses.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from raymill.cluster.interface import set_interface

LIMIT_S = 60


def main(rank: str, store: str, *node: str) -> None:
    """Print the sum."""
    for address in node:
        set_interface(address)
    os.environ |= {"MASTER_ADDR": store, "MASTER_PORT": "29511"}
    dist.init_process_group(
        "gloo", rank=int(rank), world_size=2, timeout=timedelta(seconds=LIMIT_S)
    )
    one = torch.ones(1)
    dist.all_reduce(one)
    print(f"sum {one.item():g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
