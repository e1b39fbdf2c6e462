"""Train the last epoch of a run, then finish it, with the train_kd.py on the import path;
prints the seconds of the end as JSON.

    PYTHONPATH=CHECKOUT python -P _finish_once.py ALONE ARGUMENT ...

ALONE: the run folder of the same student without teachers; ARGUMENT: the words of train_kd.py.  Only names that older
checkouts have, too, are used here, so that commits can be compared.
"""

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch

import train_kd
from kd_core import evaluation


def main(alone: Path, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    options, resolved = train_kd.parse(arguments)
    config, job = evaluation.start(options, resolved)
    members = evaluation.check_everything(config, job, options.resume, look_for_remedies=False)
    with ExitStack() as cleanup:
        folder = train_kd.open_folder(config, job, options.resume, cleanup)
        setup = train_kd.prepare(config, job, members)
        progress, checkpoints, tracker = train_kd.restore(setup, folder, cleanup)
        for _ in train_kd.epochs(setup, progress, checkpoints, tracker):
            pass
        began = {"wall": time.perf_counter(), "cpu": time.process_time()}
        train_kd.finish(setup, folder, progress, tracker, alone)
        print(json.dumps({"wall": time.perf_counter() - began["wall"], "cpu": time.process_time() - began["cpu"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
