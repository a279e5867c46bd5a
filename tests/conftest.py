"""What holds for every test."""

import os

# One thread a process: on two cores the thread pools of torch and OpenBLAS fight the other workers for them, and sums
# taken in one order are the same on every machine. Set before anything imports numpy or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# Derandomised, so that a red run can be repeated; no deadline, because the machine may be busy.
settings.register_profile("house", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("house")
