import os

os.environ.setdefault("ROBUSTFG_TEST_THREADS", "1")  # pytest-xdist runs one worker per core
os.environ.setdefault("OMP_NUM_THREADS", os.environ["ROBUSTFG_TEST_THREADS"])
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest


@pytest.fixture(autouse=True)
def _no_leftover_threads():
    import torch

    torch.set_num_threads(int(os.environ["ROBUSTFG_TEST_THREADS"]))
