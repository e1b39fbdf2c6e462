"""Learning rate at the points that matter, and what the optimizer is built from."""

import pytest
import torch
from torch import nn

import kd_methods
import train_kd
from kd_core.config import TrainingConfig
from kd_core.errors import UserError
from kd_core.loop.optimizer import NonFiniteSteps, create_optimizer, learning_rate_at, set_learning_rate
from kd_core.run.folder import read_metrics


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
    with pytest.raises(UserError, match="unknown optimizer 'adamq', did you mean 'adam.*such as adamw"):
        create_optimizer(nn.Linear(2, 2), TrainingConfig(optimizer="adamq"), torch.device("cpu"))
    with pytest.raises(UserError, match="training.optimizer: 'adamw' cannot be built: .*betta"):
        create_optimizer(nn.Linear(2, 2), TrainingConfig(optimizer_args={"betta": 1}), torch.device("cpu"))


def test_an_optimizer_that_needs_second_derivatives_is_refused():
    with pytest.raises(UserError, match="training.optimizer: 'adahessian' needs second derivatives.*such as adamw"):
        create_optimizer(nn.Linear(3, 3), TrainingConfig(optimizer="adahessian"), torch.device("cpu"))


def test_set_learning_rate_reaches_every_group():
    optimizer = create_optimizer(
        nn.Sequential(nn.Linear(3, 4)), TrainingConfig(decay_norms_and_biases=False), torch.device("cpu")
    )
    set_learning_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


def test_layer_decay_leaves_the_logged_learning_rate(tmp_path):
    """Timm's groups begin with the first layer, which it slows down most."""
    words = [
        f"--output_dir={tmp_path}", f"--cache.dir={tmp_path / 'cache'}", "--no-wandb", "--teachers=[]",
        f"--kd.type={kd_methods.LABEL_ONLY}", "--training.compare_with_baseline=false", "--training.log_every=1",
        "--data.train_size=100", "--data.batch_size=50", "--training.max_epochs=1", "--training.schedule=constant",
        "--training.learning_rate=0.01", "--training.optimizer_args={layer_decay: 0.5}",
    ]  # fmt: skip
    rates = [row["learning_rate"] for row in train_kd.epochs_of(words)]
    [file] = tmp_path.glob("*/metrics.jsonl")
    rates += [row["train_step/learning_rate"] for row in read_metrics(file) if "train_step/learning_rate" in row]
    assert rates == [0.01] * 3


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "nesterov": True, "momentum": 0.5}],
    ids=str,
)
def test_a_skipped_first_step_leaves_nothing_behind(settings):
    """Gradient scaling skips it on the device by `found_inf`, as fp16 does when its first scale is too large."""

    def trained(skipped: list[float]) -> torch.Tensor:
        weights = nn.Linear(50, 50, bias=False)
        nn.init.constant_(weights.weight, 0.5)
        waste = [torch.full((50, 50), 1e30) for _ in range(20)]  # what unset memory may hold
        del waste
        optimizer = create_optimizer(weights, TrainingConfig(**settings), torch.device("cpu"))
        for skip in skipped:
            weights.weight.grad = torch.full((50, 50), float("nan") if skip else 0.25)
            optimizer.found_inf = torch.tensor(skip)
            optimizer.step()
        return weights.weight.detach()

    assert torch.equal(trained([1.0, 0.0, 1.0, 0.0]), trained([0.0, 0.0]))


def test_momentum_that_starts_from_zero_takes_pytorchs_own_first_step():
    gradient = torch.randn(7, 7)
    for options in ({"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}):
        ours, own = (nn.Linear(7, 7, bias=False) for _ in range(2))
        own.load_state_dict(ours.state_dict())
        training = TrainingConfig(optimizer="sgd", **options)
        optimizers = (
            create_optimizer(ours, training, torch.device("cpu")),
            torch.optim.SGD(own.parameters(), lr=1e-3, weight_decay=1e-4, fused=True, **options),
        )
        for network, optimizer in zip((ours, own), optimizers, strict=True):
            for _ in range(3):
                network.weight.grad = gradient.clone()
                optimizer.step()
        assert torch.equal(ours.weight, own.weight)


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "nesterov": True}, {"optimizer": "adam"}],
    ids=str,
)
def test_a_skipped_step_changes_nothing(settings):
    """Not weights, moments, counts of steps, nor BatchNorm's statistics, wherever it comes."""
    batches = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0))
    broken = torch.full((8, 3), torch.inf)

    def trained(sequence: list[torch.Tensor]) -> tuple[dict, dict]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        training = TrainingConfig(skip_nonfinite=9, **settings)
        optimizer = create_optimizer(network, training, torch.device("cpu"))
        guard = NonFiniteSteps(optimizer, list(network.buffers()))
        for batch in sequence:
            guard.begin()
            network(batch).square().sum().backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), torch.inf)
            assert bool(guard.skip(norm)) == (batch is broken)
            optimizer.step()
            optimizer.zero_grad()
        return network.state_dict(), optimizer.state_dict()["state"]

    expected = trained([*batches])
    torch.testing.assert_close(
        trained([broken, batches[0], broken, broken, *batches[1:], broken]), expected, rtol=0, atol=0
    )


def test_steps_are_skipped_by_fused_optimizers_alone():
    for settings in ({"optimizer": "lamb"}, {"optimizer_args": {"fused": False}}):
        with pytest.raises(UserError, match="training.skip_nonfinite: needs adamw, adam or sgd, fused"):
            create_optimizer(nn.Linear(2, 2), TrainingConfig(skip_nonfinite=1, **settings), torch.device("cpu"))
    with pytest.raises(ValueError, match="skip_nonfinite must be 0 with fp16"):
        TrainingConfig(skip_nonfinite=1, mixed_precision="fp16")


def test_parts_of_a_batch_are_refused_with_cuda_graphs():
    """Which would write the gradients of one part over those of the last."""
    with pytest.raises(ValueError, match="compile_mode 'reduce-overhead' makes CUDA graphs, in which accumulate must"):
        TrainingConfig(compile=True, compile_mode="reduce-overhead", accumulate=2)
    assert TrainingConfig(compile=True, accumulate=2).accumulate == 2
