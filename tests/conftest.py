import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _own_random_state_and_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    named = config.getoption("-m") or ""
    wanted = [str(argument) for argument in config.invocation_params.args if "::" in str(argument)]
    data = os.environ.get("CNNOPT_DATA")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif item.get_closest_marker("gpu") and "gpu" not in named and not wanted:
            item.add_marker(pytest.mark.skip(reason="runs by name: pytest -m gpu"))
        if item.get_closest_marker("large_data") and not data:
            item.add_marker(pytest.mark.skip(reason="needs CNNOPT_DATA, the folder that holds FashionMNIST/raw and cifar10"))
        elif item.get_closest_marker("large_data") and "large_data" not in named and not wanted:
            item.add_marker(pytest.mark.skip(reason="runs by name: pytest -m large_data"))
        if item.get_closest_marker("goal") and "goal" not in named and not wanted:
            item.add_marker(pytest.mark.skip(reason="a goal that is not reached yet; runs by name: pytest -m goal"))
        if item.get_closest_marker("slow") and "slow" not in named and not wanted:
            item.add_marker(pytest.mark.skip(reason="takes long, alone or with its kind; runs by name: pytest -m slow"))
