"""One thread for every test and what it starts.

Many tests compare bits: between batch sizes, processes, and runs that were killed and resumed. Sums over several
threads may be taken in another order. Tests of threads set their own number.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded, here and in the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    """How many torch computes with in this test."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
