from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.learning_rate import Plateau
from tests.learning_rate.oracles import optimizer_of_rate


@settings(max_examples=60, deadline=None)
@given(
    metrics=st.lists(st.floats(-10, 10, allow_nan=False), min_size=1, max_size=25),
    mode=st.sampled_from(["min", "max"]),
    gamma=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.2]),
    cooldown=st.integers(0, 3),
    minimum=st.sampled_from([0.0, 0.01]),
    cut=st.integers(0, 25),
)
def test_plateau_is_torchs_on_any_metrics_and_continues_from_its_state(
    metrics, mode, gamma, patience, threshold, cooldown, minimum, cut
):
    optimizer = optimizer_of_rate(1.0)
    oracle = ReduceLROnPlateau(optimizer, mode, gamma, patience, threshold, cooldown=cooldown, min_lr=minimum, eps=0.0)
    arguments = ("val", mode, gamma, patience, threshold, cooldown, minimum)
    schedule = Plateau(*arguments)
    for index, metric in enumerate(metrics):
        if index == cut:
            state = schedule.state_dict()
            schedule = Plateau(*arguments)
            schedule.load_state_dict(state)
        schedule.observe({"val": metric, "other": -metric})
        oracle.step(metric)
        assert schedule.factor(random.random()) == optimizer.param_groups[0]["lr"]


def test_plateau_names_the_metric_that_was_not_logged():
    with pytest.raises(ConfigurationError, match=r"monitor='val_los'.*\['val_loss'\]"):
        Plateau("val_los").observe({"val_loss": 1.0})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"mode": "lower"}, "mode"),
        ({"gamma": 1.0}, "gamma"),
        ({"patience": -1}, "patience"),
        ({"threshold": -1}, "threshold"),
        ({"cooldown": -1}, "cooldown"),
        ({"minimum": 2.0}, "minimum"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, name):
    with pytest.raises(ConfigurationError, match=f"Plateau: {name}"):
        Plateau(**arguments)
