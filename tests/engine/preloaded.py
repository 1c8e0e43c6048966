"""What the processes of tests import, imported once, by the process that they are forked from."""

from raymill.cluster.fork_server import import_modules
from raymill.cluster.local_ray import WORKERS_ON_CPU

import_modules(WORKERS_ON_CPU, lambda: None)
