"""Means on the device, and the alarm for values that are not finite."""

import pytest
import torch

from kd_core.meter import Meter, NonFinite


def scalars(**values):
    return {name: torch.tensor(float(value)) for name, value in values.items()}


def test_interval_and_epoch_means():
    meter = Meter()
    for step, value in enumerate([1, 2, 6]):
        meter.add(step, scalars(loss=value, accuracy=value / 10))
    assert meter.reading() == pytest.approx({"loss": 3, "accuracy": 0.3})
    meter.add(3, scalars(loss=7, accuracy=0.7))
    assert meter.reading() == pytest.approx({"loss": 7, "accuracy": 0.7})
    assert meter.epoch() == pytest.approx({"loss": 4, "accuracy": 0.4})


def test_nothing_added_reads_as_nothing():
    assert Meter().reading() == {}


def test_sums_over_processes():
    meter = Meter(
        reduce_sum=lambda tensor: tensor * 2 + torch.tensor([6.0, 0.0])
    )  # another process with the sum 6 more
    meter.add(0, scalars(loss=2))
    assert meter.reading() == pytest.approx({"loss": (2 * 2 + 6) / 2})


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_the_first_bad_step_and_metric_are_named(bad):
    meter = Meter()
    for step, value in enumerate([1, float(bad), 2, float(bad)]):  # steps count from 0 here, from 1 in messages
        meter.add(10 + step, scalars(fine=1, loss=value))
    with pytest.raises(NonFinite, match="^loss not finite at step 12$"):
        meter.reading()


def test_a_change_of_names_within_an_epoch_is_a_bug():
    meter = Meter()
    meter.add(0, scalars(a=1))
    with pytest.raises(AssertionError, match="names changed"):
        meter.add(1, scalars(b=1))
    meter.start_epoch()
    meter.add(0, scalars(b=1))
    assert meter.epoch() == {"b": 1.0}
