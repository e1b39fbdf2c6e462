"""docs/metrics.md names everything that is logged."""

import ast
import re
from pathlib import Path

import pytest
import torch
from method_variants import method_for

import kd_methods
from kd_core.config import Config
from kd_core.run.tracking import HEADLINES
from kd_methods import StudentOutput, TeacherOutputs

ROOT = Path(__file__).resolve().parents[2]
NAMED = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "metrics.md").read_text()))
# What users' dashboards rely on: none of these may ever be renamed.
CONTRACT = """
    epoch learning_rate train/loss_total train/accuracy train/loss_label train/loss_distill
    train/kd_weight train/teacher/{i}/weight train/step_time train/loss_kl train/loss_ce train/loss_soft
    train/loss_hard train/gate train/avg_teacher_conf train/dynamic_alpha train/max_teacher_conf_mean
    train/teacher_{i}_usage_fraction train_step/step val/accuracy val/loss_total val/auroc val/loss_ce
    test/accuracy test/auroc test/loss_total teacher/{i}/val_accuracy teacher/ensemble/val_accuracy
    perf/epoch_time perf/data_time perf/teacher_time perf/images_per_second perf/teacher_cache_hit_rate
    perf/gpu_memory_peak_mb {split}/loss {split}/accuracy {split}/accuracy_percent {split}/auroc
    {split}_loss {split}_accuracy {split}_accuracy_percent checkpoint_path model_name teachers kd_method
    temperature num_teachers final_val_accuracy best_val_accuracy best_epoch final_test_accuracy
""".split()


@pytest.mark.parametrize("name", CONTRACT)
def test_contract_is_documented(name: str) -> None:
    assert name in NAMED


@pytest.mark.parametrize("method", kd_methods.names())
def test_every_metric_of_a_method_is_documented(method: str) -> None:
    logits, labels = torch.randn(2, 8, 5), torch.randint(5, (8,))
    _, metrics = method_for({"type": method}, 2)(StudentOutput(logits[0]), TeacherOutputs(logits), labels)
    names = {"train/" + re.sub(r"(?<=teacher[/_])\d+", "{i}", name) for name in metrics}
    assert names and names <= NAMED


def test_every_metric_of_the_feature_term_is_documented() -> None:
    logits, labels = torch.randn(2, 8, 5), torch.randint(5, (8,))
    features = torch.rand(8, 3)
    config = {"type": "average", "features": [{"loss": "mse", "student": [0], "teacher": [0]}] * 2}
    method = kd_methods.build(config, student_shapes=[(3,)], teacher_shapes=[[(3,)]] * 2)
    _, metrics = method(StudentOutput(logits[0], (features,)), TeacherOutputs(logits, ((features,),) * 2), labels)
    assert {"loss_features", "feature/mse", "feature/mse_2"} <= set(metrics)
    assert {"train/loss_features", "train/feature/{name}", "train/feature/{name}_2"} <= NAMED


def test_wandbs_summary_is_what_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    section = page.partition("\n## Run summary\n")[2].partition("\n\nFlat keys")[0]
    cells = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert re.findall(r"`(\w+)`", cells) == list(HEADLINES)


def test_every_name_in_the_code_is_documented() -> None:
    """String constants that look like metric names; names put together at run time are covered above."""
    found = set()
    for path in [*ROOT.glob("*_kd.py"), *(ROOT / "kd_core").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"^(?:train|train_step|val|test|perf)/\w+$", node.value))
    assert {"perf/epoch_time", "val/accuracy"} <= found <= NAMED


def test_summary_and_flat_keys_are_documented() -> None:
    assert set(HEADLINES) <= NAMED
    assert set(Config.model_validate({"kd": {"type": kd_methods.LABEL_ONLY}}).flat(10)) <= NAMED


def test_every_fault_has_its_test() -> None:
    rows = [row for row in (ROOT / "docs" / "reliability.md").read_text().splitlines() if row.startswith("| ")][1:]
    named = {re.search(r"`(test_\w+)` \|$", row)[1] for row in rows}  # type: ignore[index]
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for text in texts for name in re.findall(r"^def (\w+)", text, re.MULTILINE)}
    assert len(rows) >= 25 and named <= there, named - there
