"""Learning rate at the points that matter, and what the optimizer is built from."""

import pytest
import torch
from torch import nn

from kd_core.config import TrainingConfig
from kd_core.errors import UserError
from kd_core.optim import create_optimizer, learning_rate_at, set_learning_rate


def rate(step, epochs=10, steps_per_epoch=5, **settings):
    training = TrainingConfig(max_epochs=epochs, learning_rate=0.1, **settings)
    return learning_rate_at(
        step, total_steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch, training=training
    )


def test_cosine_starts_at_the_peak_and_ends_at_the_floor_on_the_last_step():
    assert rate(0) == 0.1
    assert rate(49) == pytest.approx(1e-6)
    assert all(rate(step) > rate(step + 1) for step in range(49))


def test_warmup_rises_and_meets_the_schedule():
    rates = [rate(step, warmup_epochs=2.0) for step in range(50)]
    assert rates[0] == pytest.approx(0.1 / 11) and rates[10] == 0.1 and rates[49] == pytest.approx(1e-6)
    assert rates.index(max(rates)) == 10


def test_multistep_decays_after_its_milestones():
    rates = [rate(5 * epoch, schedule="multistep", milestones=[4, 8]) for epoch in range(10)]
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 2)
    assert rate(19, schedule="multistep", milestones=[4]) == 0.1 and rate(
        20, schedule="multistep", milestones=[4]
    ) == pytest.approx(0.01)


def test_constant_and_a_single_step():
    assert rate(37, schedule="constant") == 0.1
    assert rate(0, epochs=1, steps_per_epoch=1) == 0.1


@pytest.mark.parametrize(("name", "nesterov"), [("sgd", False), ("sgd", True)])
def test_sgd_is_nesterov_only_if_asked(name, nesterov):
    optimizer = create_optimizer(
        nn.Linear(3, 3), TrainingConfig(optimizer=name, nesterov=nesterov), torch.device("cpu")
    )
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["nesterov"] is nesterov and optimizer.param_groups[0]["momentum"] == 0.9


def test_norms_and_biases_can_be_spared_weight_decay():
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    spared = create_optimizer(network, TrainingConfig(decay_norms_and_biases=False), torch.device("cpu"))
    decays = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in spared.param_groups}
    assert decays == {0.0: 4 + 8, 1e-4: 12}
    everything = create_optimizer(network, TrainingConfig(), torch.device("cpu"))
    assert {group["weight_decay"] for group in everything.param_groups} == {1e-4}


def test_any_timm_optimizer_by_name_and_its_arguments():
    assert (
        type(create_optimizer(nn.Linear(2, 2), TrainingConfig(optimizer="lamb"), torch.device("cpu"))).__name__
        == "Lamb"
    )
    with pytest.raises(UserError, match="training.optimizer: 'adamw' cannot be built: .*betta"):
        create_optimizer(nn.Linear(2, 2), TrainingConfig(optimizer_args={"betta": 1}), torch.device("cpu"))


def test_set_learning_rate_reaches_every_group():
    optimizer = create_optimizer(
        nn.Sequential(nn.Linear(3, 4)), TrainingConfig(decay_norms_and_biases=False), torch.device("cpu")
    )
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
