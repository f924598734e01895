import os

THREADS = os.environ.get("ROBUSTFG_TEST_THREADS", "1")  # pytest-xdist runs one worker per core
os.environ.setdefault("OMP_NUM_THREADS", THREADS)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest


@pytest.fixture(autouse=True)
def _no_leftover_threads():
    import torch

    torch.set_num_threads(int(THREADS))
