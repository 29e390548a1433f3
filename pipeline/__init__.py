"""What every stage stands on: params, their check, the resume state, and the parts that stages put together."""

import os

# Threads that wait for work sleep: libgomp reads it when torch is imported. By default they spin, and beside a busy
# process a training step of 0.3 s took 1 to 2.8 s on two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
