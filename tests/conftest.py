"""One thread for every test and what it starts.

Many tests compare bits: between batch sizes, processes, and runs that were killed and resumed. Sums over several
threads may be taken in another order. Tests of threads set their own number.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in the processes that tests start

import torch  # noqa: E402

torch.set_num_threads(1)
