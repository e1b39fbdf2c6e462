"""Means on the device, and the alarm for values that are not finite."""

import pytest
import torch
from torch import nn

from kd_core.errors import NonFinite
from kd_core.loop.meter import Meter, require_finite, require_scale


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


def test_an_empty_meter_reads_as_nothing():
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


def test_the_first_bad_step_of_all_processes_is_named():
    meter = Meter(lambda tensor: 2 * tensor, lambda first: torch.cat([first, torch.tensor([torch.inf, 3.0])]))
    for step in range(5, 8):
        meter.add(step, scalars(loss="nan", accuracy=1))
    with pytest.raises(NonFinite, match="^loss, accuracy not finite at step 4$"):
        meter.reading()


def test_skipped_steps_are_counted_and_not_averaged():
    meter = Meter(lambda tensor: 2 * tensor, may_skip=2)  # two processes
    for step, value in enumerate([1, "nan", 3, "inf"]):
        meter.add(step, scalars(loss=value), torch.tensor(value in ("nan", "inf")))
    assert meter.reading() == pytest.approx({"loss": 2, "skipped_steps": 2})
    meter.add(4, scalars(loss=8), torch.tensor(False))
    assert meter.reading() == pytest.approx({"loss": 8, "skipped_steps": 0})
    assert meter.epoch() == pytest.approx({"loss": 4, "skipped_steps": 2}) and meter.skipped == 2

    resumed = Meter(may_skip=2)
    resumed.load_state(meter.state(), torch.device("cpu"))
    assert resumed.epoch() == pytest.approx({"loss": 4, "skipped_steps": 2}) and resumed.skipped == 2
    resumed.start_epoch()
    assert resumed.skipped == 2
    resumed.add(5, scalars(loss="inf"), torch.tensor(True))
    with pytest.raises(NonFinite, match="^loss not finite at step 6, and 3 steps were skipped: .* allows 2$"):
        resumed.reading()


def test_an_interval_of_skipped_steps_has_no_means():
    meter = Meter(may_skip=9)
    meter.add(0, scalars(loss="nan"), torch.tensor(True))
    assert meter.reading() == {"skipped_steps": 1}


def test_a_bad_value_in_a_step_that_is_not_skipped_stops():
    meter = Meter(may_skip=9)
    meter.add(0, scalars(loss="nan", gradient_norm=1), torch.tensor(False))
    with pytest.raises(NonFinite, match="^loss not finite at step 1$"):
        meter.reading()


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda network, state: network[0].weight.data.fill_(torch.nan), "0.weight"),
        (lambda network, state: network[1].running_var.fill_(torch.inf), "1.running_var"),
        (lambda network, state: state[network[0].bias]["exp_avg_sq"].fill_(torch.inf), "exp_avg_sq of 0.bias"),
    ],
)
def test_what_a_checkpoint_holds_has_to_be_finite(spoil, name):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    require_finite(network, optimizer, "after step 1")
    spoil(network, optimizer.state)
    with pytest.raises(NonFinite, match=f"^{name} not finite after step 1$"):
        require_finite(network, optimizer, "after step 1")


def test_a_loss_scale_that_shrinks_without_end_is_noticed():
    require_scale(None)
    weights, scaler = nn.Parameter(torch.ones(3)), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD([weights], lr=0.1)
    for step in range(40):
        if step < 20:  # as happens in ordinary training
            require_scale(scaler)
        scaler.scale((weights * torch.nan).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    with pytest.raises(NonFinite, match="^gradients not finite in the last steps, at any loss scale down to"):
        require_scale(scaler)


def test_a_change_of_names_within_an_epoch_is_a_bug():
    meter = Meter()
    meter.add(0, scalars(a=1))
    with pytest.raises(AssertionError, match="names changed"):
        meter.add(1, scalars(b=1))
    meter.start_epoch()
    meter.add(0, scalars(b=1))
    assert meter.epoch() == {"b": 1.0}
