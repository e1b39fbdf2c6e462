"""Translate an experiment file of mdistiller or torchdistill into settings of train_kd.py.

    python -m kd_core.porting FILE.yaml > mine.yaml                  the whole experiment
    python -m kd_core.porting FILE.yaml --only kd > losses.yaml      its losses alone, for networks and data of your own
    python train_kd.py --config mine.yaml --check
    python train_kd.py --config configs/cifar32/baseline.yaml --config losses.yaml --teachers=...

The same name often means another loss, so a weight from elsewhere may mean another strength. The comments at the top of
the result list each loss of the experiment: its weight there, the ratio of their loss to ours on the same tensors, and
the setting here, in which that ratio is included; then everything that differs. A ratio of 1/T^2 = 0.0625 means that
their loss is 16 times smaller than ours, so that the weight here is theirs times 0.0625. docs/porting.md has the table
of all losses, with those of RepDistiller, CA-MKD, timm and KD_Lib, and tests hold its numbers.

Nothing is guessed: a key that cannot be translated is a message, one for each key, and nothing is printed. --only kd
ignores the keys of networks, data, optimizer and schedule.

  mdistiller    configs/cifar100/*.yaml: KD, DKD, AT, FitNet, NST, VID, SP, PKT, RKD, CRD, ReviewKD and NONE
  torchdistill  configs with `key` and `kwargs` (version 1.0 and later), one stage, a weighted sum of KDLoss,
                LogitStdKDLoss, DISTLoss, ATLoss, VIDLoss, PKTLoss, RKDLoss and CrossEntropyLoss

A file is read as data: nothing in it is run, imported or downloaded. Exit status: 0, or 2 if something cannot be
translated.
"""

from __future__ import annotations

from pathlib import Path

from kd_core.config import Layer, resolve
from kd_core.errors import CommandLine, UserError
from kd_core.files import local_path
from kd_core.porting import mdistiller, torchdistill
from kd_core.porting.experiment_file import read_experiment
from kd_core.porting.translation import Translation
from kd_core.run.script import show_help


def main(arguments: list[str]) -> None:
    parser = CommandLine("python -m kd_core.porting")
    parser.add_argument("file", nargs="?")
    parser.add_argument("--only", choices=["kd"])
    parser.add_argument("-h", "--help", action="store_true")
    options = parser.parse_args(arguments)
    if options.help:
        show_help(f"{__doc__}".rstrip())
    if options.file is None:
        raise UserError("FILE.yaml is missing: an experiment file of mdistiller or torchdistill; --help shows examples")
    print(convert(local_path(options.file, "FILE.yaml"), only_kd=options.only == "kd"), end="")


def convert(path: Path, *, only_kd: bool = False) -> str:
    """The experiment in file `path` as YAML with comments; UserError has a line for each key without translation."""
    found = _translate(path, only_kd)
    found.finish("DISTILLER.TYPE" if found.title.startswith("mdistiller") else "train")
    found.keys.check(path)
    someone = {"teachers": [{"weights": "FILE"}]} if only_kd else {}  # to check the section with
    resolve([Layer(f"{path}, translated", {**someone, **found.values()})], in_sweep=False)
    return found.text(path.name)


def _translate(path: Path, only_kd: bool) -> Translation:
    values = read_experiment(path)
    if isinstance(values.get("DISTILLER"), dict):
        return mdistiller.translate(values, only_kd=only_kd)
    if {"models", "train"} <= values.keys():
        return torchdistill.translate(values, only_kd=only_kd)
    raise UserError(
        f"{path}: neither an experiment file of mdistiller, which has a section DISTILLER, nor one of torchdistill, "
        "which has the sections models and train"
    )
