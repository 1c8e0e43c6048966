"""Imports that test processes need, made once in the process that they are forked from."""

from raymill.cluster.forked_process import hide_unused, import_name, show_unused
from raymill.cluster.local_ray import WORKERS_ON_CPU

hide_unused()
for name in WORKERS_ON_CPU:
    import_name(name)
show_unused()
