import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    # The models of the tests are too small for a second thread to help, and a busy machine would make it wait.
    torch.set_num_threads(1)
