"""`training.mixed_precision: auto` becomes one precision, which everything after it sees."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import train_kd
from kd_core.config import parse_overrides, resolve
from kd_core.errors import UserError
from kd_core.loop.processes import create_accelerator
from kd_core.run import precision

CPU = torch.device("cpu")
AUTO, RESNET = "--training.mixed_precision=auto", "--model={name: cifar_resnet8}"
TINY = "{name: test_vit, img_size: 32, args: {patch_size: 16}}"


def words(home: Path, *more: str) -> list[str]:
    (home / "defaults.yaml").write_text("{}")  # without a file, the quickstart's settings come first
    return [
        f"--config={home / 'defaults.yaml'}",
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", f"--model={TINY}", "--name=run",
        "--teachers=[]", "--kd.type=baseline", "--training.max_epochs=1", "--data.source=digits",
        "--training.compare_with_baseline=false", "--evaluation.report=false", "--data.train_size=320",
        "--data.batch_size=32",
        *(more or [AUTO]), "--no-wandb",
    ]  # fmt: skip


def settings(home: Path, *more: str):
    given = dict(word.removeprefix("--").split("=", 1) for word in words(home, *more)[1:-1])
    return resolve([parse_overrides([f"--{key}={value}" for key, value in given.items()])]).config


@pytest.fixture
def fastest(monkeypatch):
    """Sets which type seems fastest, and counts the measurements."""
    measured = []

    def seems(name: str) -> list[str]:
        def seconds(config, device, types):
            measured.append(config.model.name)
            return {each: [1.0 if each == name else 2.0] for each in types}

        monkeypatch.setattr(precision, "step_seconds", seconds)
        return measured

    return seems


def choose(config, resume: str = "auto") -> tuple[str, str]:
    said: list[str] = []
    return precision.choose(config, resume, CPU, said.append), "\n".join(said)


def test_it_is_measured_once_per_network_and_says_so(tmp_path, fastest):
    measured = fastest("bf16")
    chosen, said = choose(settings(tmp_path))
    assert chosen == "bf16" and "takes 0.50 of its time in float32" in said and "precision.json" in said
    fastest("no")  # the machine seems to have changed its mind: what is known stays
    chosen, said = choose(settings(tmp_path, AUTO, "--data.val_size=0.2", "--training.learning_rate=0.1"))
    assert chosen == "bf16" and "as measured before" in said and measured == ["test_vit"]
    assert choose(settings(tmp_path, AUTO, RESNET))[0] == "no"
    assert measured == ["test_vit", "cifar_resnet8"]


@pytest.mark.parametrize(("times", "chosen"), [((1.0, 0.95), "no"), ((1.0, 0.85), "bf16"), ((1.0, 3.0), "no")])
def test_a_type_that_rounds_more_must_pay(tmp_path, monkeypatch, times, chosen):
    seconds = {name: [time] for name, time in zip(("no", "bf16"), times, strict=True)}
    monkeypatch.setattr(precision, "step_seconds", lambda *_: seconds)
    assert choose(settings(tmp_path))[0] == chosen


def test_real_steps_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "STEPS", 3)
    before = torch.get_rng_state()
    seconds = precision.step_seconds(settings(tmp_path), CPU, ["no", "bf16"])
    assert all(len(own) == 3 and min(own) > 0 for own in seconds.values())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_note_is_measured_again(tmp_path, fastest):
    measured = fastest("bf16")
    choose(settings(tmp_path))
    note = tmp_path / "cache" / precision.NOTES
    note.write_text("{")
    assert choose(settings(tmp_path))[0] == "bf16" and len(measured) == 2
    note.write_text(json.dumps(dict.fromkeys(json.loads(note.read_text()), "fp64")))
    assert choose(settings(tmp_path))[0] == "bf16" and len(measured) == 3


def test_a_sweep_decides_once_for_all_networks(tmp_path, fastest, monkeypatch):
    measured = fastest("bf16")
    monkeypatch.setenv("KD_SWEEP", str(tmp_path / "study.journal"))
    assert choose(settings(tmp_path))[0] == "bf16"
    fastest("no")
    assert choose(settings(tmp_path, AUTO, RESNET))[0] == "bf16" and len(measured) == 1
    assert not (tmp_path / "cache").exists()
    monkeypatch.delenv("KD_SWEEP")
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert choose(settings(tmp_path))[0] == "no"
    fastest("bf16")
    assert choose(settings(tmp_path, AUTO, RESNET))[0] == "no" and len(measured) == 2


def test_the_run_holds_what_it_became_and_keeps_it(tmp_path, fastest, capsys):
    measured = fastest("no")
    train_kd.main(words(tmp_path))
    [folder] = (tmp_path / "runs").glob("run-*")
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["mixed_precision"] == "no"
    assert json.loads((folder / "identity.json").read_text())["training"]["mixed_precision"] == "no"
    (tmp_path / "cache" / precision.NOTES).unlink()  # as on another machine
    fastest("bf16")
    capsys.readouterr()
    train_kd.main(words(tmp_path))
    said = capsys.readouterr().out
    assert "auto is no, that of the run with these settings" in said and "already finished" in said
    assert choose(settings(tmp_path), str(folder))[0] == "no" and len(measured) == 1
    assert choose(settings(tmp_path), "never")[0] == "bf16"  # --fresh
    train_kd.main(words(tmp_path, "--training.mixed_precision=no"))
    assert "already finished" in capsys.readouterr().out  # the same run


def test_settings_that_cannot_train_are_left_to_the_usual_checks(tmp_path):
    chosen, said = choose(settings(tmp_path, AUTO, "--model={name: no_such_network}"))
    assert chosen == "no" and "nothing could be measured: model.name: unknown" in said
    assert not (tmp_path / "cache" / precision.NOTES).exists()


def test_a_trial_keeps_the_precision_of_its_own_run_alone(tmp_path, fastest, monkeypatch):
    fastest("no")
    train_kd.main(words(tmp_path))
    [folder] = (tmp_path / "runs").glob("run-*")
    fastest("bf16")
    monkeypatch.setenv("KD_SWEEP", str(tmp_path / "study.journal"))
    monkeypatch.setenv("KD_TRIAL", "abcdefgh")
    assert choose(settings(tmp_path))[0] == "bf16"
    monkeypatch.setenv("KD_TRIAL", folder.name[-8:])
    assert choose(settings(tmp_path))[0] == "no"


def test_a_run_is_found_before_its_teachers_are_downloaded(tmp_path, fastest):
    fastest("bf16")
    own = settings(tmp_path, AUTO, "--teachers=[{weights: 'wandb:a/b/model-x:best'}]")
    kept = precision.identity_of(precision.with_precision(own, "no"), "f" * 64)
    kept["teachers"][0]["weights"] = "0123456789abcdef"  # known once it was downloaded, as are the data
    folder = tmp_path / "runs" / "run-ab12cd34"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(json.dumps(precision.redacted(kept)))
    assert choose(own)[0] == "no"  # that of the run, not what would be measured


def test_the_printed_settings_leave_it_open(tmp_path, capsys):
    train_kd.main([*words(tmp_path), "--print-config"])
    assert yaml.safe_load(capsys.readouterr().out)["training"]["mixed_precision"] == "auto"


def test_only_training_measures():
    with pytest.raises(UserError, match="training.mixed_precision: auto is for training; give no, bf16 or fp16"):
        create_accelerator("auto")
