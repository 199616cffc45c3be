import math

import pytest

from lightning_cnnopt.core.errors import (
    CheckpointError,
    CnnoptError,
    ConfigurationError,
    DataError,
    DivergenceError,
    check_choice,
    check_range,
    did_you_mean,
)


@pytest.mark.parametrize("error", [ConfigurationError, DataError, CheckpointError, DivergenceError])
def test_every_error_is_caught_as_the_packages_own(error):
    assert issubclass(error, CnnoptError)


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_closed_bounds_belong_to_the_range(value):
    check_range("Owner", "p", value, 0, 1)


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (-0.1, {}),
        (1.1, {}),
        (0, {"low_open": True}),
        (1, {"high_open": True}),
        (math.nan, {}),
        (True, {}),
        ("1", {}),
        (None, {}),
        (1.0, {"whole": True}),
    ],
)
def test_what_is_no_number_in_the_range_is_refused(value, options):
    with pytest.raises(ConfigurationError):
        check_range("Owner", "p", value, 0, 1, **options)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_refused_without_bounds_too(value):
    with pytest.raises(ConfigurationError, match="out of range"):
        check_range("Owner", "p", value)


def test_infinity_is_taken_where_it_means_something():
    check_range("Owner", "p", math.inf, 0, finite=False)
    with pytest.raises(ConfigurationError, match="out of range"):
        check_range("Owner", "p", math.nan, 0, finite=False)


def test_a_bound_of_none_is_no_bound():
    check_range("Owner", "p", -1e300)
    check_range("Owner", "p", 1e300, 0)


def test_a_range_error_names_owner_argument_value_and_expectation():
    with pytest.raises(ConfigurationError, match=r"Owner: p=7 .*0 <= p < 1"):
        check_range("Owner", "p", 7, 0, 1, high_open=True)
    check_range("Owner", "count", 7, 0, whole=True)
    with pytest.raises(ConfigurationError, match=r"Owner: count=7.5 is not a whole number; expected 0 <= count"):
        check_range("Owner", "count", 7.5, 0, whole=True)


def test_a_choice_that_exists_passes():
    check_choice("Owner", "mode", "b", ["a", "b"])


def test_a_choice_error_names_value_choices_and_the_nearest():
    with pytest.raises(ConfigurationError, match=r"Owner: mode='fan_im'.*'fan_in', 'fan_out'.*Did you mean 'fan_in'"):
        check_choice("Owner", "mode", "fan_im", ["fan_in", "fan_out"])


@pytest.mark.parametrize(("name", "nearest"), [("relu", "ReLU"), ("GELU_", "GELU"), ("KaimingNromal", "KaimingNormal")])
def test_the_nearest_spelling_is_found_whatever_its_case(name, nearest):
    assert repr(nearest) in did_you_mean(name, ["ReLU", "GELU", "KaimingNormal", "XavierUniform"])


def test_nothing_is_suggested_when_nothing_is_near():
    assert did_you_mean("zzz", ["ReLU", "GELU"]) == ""
