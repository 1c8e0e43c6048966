"""Imports what the processes of tests need, once, in the process that they are forked from."""

import importlib

from raymill.cluster.forked_process import hide_unused, show_unused
from raymill.cluster.local_ray import WORKERS_ON_CPU

hide_unused()
for name in WORKERS_ON_CPU:
    module, _, attribute = name.partition(":")
    imported = importlib.import_module(module)
    if attribute:
        getattr(imported, attribute)
show_unused()
