"""The campaign over the grid has every cell, and sees what is wrong; one run of each loss through the real script."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import grid_campaign
import pytest
from grid_campaign import FEATURES, IN_TWO, Case, Failed, cases, require_close, require_sound, require_terms
from method_variants import ONE_VIEW

import kd_methods
import train_kd
from kd_methods import feature_losses

CASES = {case.name: case for case in cases()}
WEIGHTINGS = [name for name in kd_methods.names() if name != kd_methods.LABEL_ONLY]


def test_every_cell_is_there_and_each_kind_is_resumed():
    cells = {f"{method} x logit loss {loss}" for method in WEIGHTINGS for loss in ONE_VIEW}
    tried = {name.rpartition(" ")[2] for name in CASES if "feature loss" in name}
    assert cells < set(CASES) and tried == set(feature_losses.names())
    assert len(CASES) == len(cells) + len(tried)
    resumed = [case.kd for case in CASES.values() if case.resumed]
    assert {kd["type"] for kd in resumed} == set(WEIGHTINGS)
    assert {kd.get("loss") for kd in resumed} >= set(ONE_VIEW)
    assert all(case.resumed for name, case in CASES.items() if "feature loss" in name)
    assert all(sum(name.endswith(end) for name in CASES) == 1 for end in IN_TWO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"status": "preempted"}, "status preempted"),
        ({"epochs": 1}, "1 epochs"),
        ({"train/loss_distill": 0.0}, "train/loss_distill is 0.0"),
        ({"train/feature/at": float("nan")}, "train/feature/at is nan"),
        ({"train/teacher/1/weight": 0.5}, "weights of the teachers sum to 0.9"),
    ],
)
def test_a_run_that_is_not_sound_is_said(changes, message):
    row = {"epoch": 1, "train/loss_total": 2.0, "train/loss_distill": 1.0, "train/feature/at": 0.1}
    row |= {"train/teacher/0/weight": 0.4, "train/teacher/1/weight": 0.6}
    row |= {name: value for name, value in changes.items() if name.startswith("train")}
    case = Case("x", {"type": "average", "features": [{"loss": "at"}]})
    arguments = case, [row] * changes.get("epochs", 2), {"status": changes.get("status", "finished")}
    if message is None:
        require_sound(*arguments)
    else:
        with pytest.raises(Failed, match=message):
            require_sound(*arguments)


def test_processes_that_train_another_way_are_said():
    rows = [{"train_step/loss_total": 2.0, "val/loss_total": 1.0}] * 2
    require_close(rows, [rows[0], {"train_step/loss_total": 2.0005, "val/loss_total": 1.0}])
    with pytest.raises(Failed, match="loss_total: 2.0 in one process, 2.1 in two"):
        require_close(rows, [rows[0], {"train_step/loss_total": 2.1, "val/loss_total": 1.0}])


def test_a_case_that_fails_is_told_with_its_message_and_others_go_on(tmp_path, monkeypatch):
    def run(words, **_):
        raise Failed("exit status 2 in place of 0: " + grid_campaign.reason("x\ntrain_kd.py: kd.loss: is wrong\ny"))

    monkeypatch.setattr(grid_campaign, "run", run)
    told = []
    outcomes = grid_campaign.campaign(list(CASES.values())[:2], tmp_path, [tmp_path] * 3, told.append)
    assert len(told) == 2 and all("exit status 2 in place of 0: kd.loss: is wrong" in line for line in told)
    assert grid_campaign.verdict(outcomes).startswith("0 of 2 cases as expected")
    assert "| aekd x logit loss abkd |  | exit status 2" in grid_campaign.table(outcomes)


def epoch(case: Case, home: Path, teachers: list[Path]) -> dict[str, Any]:
    """The row of the first epoch that train_kd.py trains; nothing comes after it."""
    epochs = train_kd.epochs_of(case.words(home / "run", teachers))
    row = next(epochs)
    epochs.close()
    return row


@pytest.mark.parametrize("loss", ONE_VIEW)
def test_one_of_each_logit_loss_trains(loss, tmp_path, digits_teachers):
    method = WEIGHTINGS[kd_methods.losses().index(loss) % len(WEIGHTINGS)]
    case = CASES[f"{method} x logit loss {loss}"]
    require_terms(case, epoch(case, tmp_path, digits_teachers))


def test_all_feature_losses_train_side_by_side(tmp_path, digits_teachers):
    small = FEATURES | {"reviewkd": {"width": 8}}
    head = {"teacher": [[-1], ["act1"]]}  # what the heads of these teachers pool
    needs = {name: feature_losses.loss_class(name).needs_teacher_classifier for name in feature_losses.names()}
    entries = [{"loss": name, **small.get(name, {}), **(head if needs[name] else {})} for name in needs]
    case = replace(CASES["fixed x feature loss nst"], kd={"type": "fixed", "features": entries})
    row = epoch(case, tmp_path, digits_teachers)
    require_terms(case, row)
    logged = {name.rpartition("/")[2] for name in row if name.startswith("train/feature/")}
    assert logged == set(feature_losses.names())
