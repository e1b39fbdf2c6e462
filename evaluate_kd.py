#!/usr/bin/env python
"""Evaluate a trained student.

    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34                  its validation split, as in training
    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34 --split test     the test split
    python evaluate_kd.py --artifact ENTITY/PROJECT/model-ab12cd34:best       a W&B model artifact, nothing else needed
    python evaluate_kd.py --wandb-run-id ENTITY/PROJECT/ab12cd34              that run's best model, else its latest
    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34 --images cat.jpg         the classes of an image
    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34 --export onnx,program    exports of the student

switches:
    --checkpoint PATH      a run folder, or an exported student (config.json and model.safetensors)
    --artifact NAME        ENTITY/PROJECT/NAME:ALIAS (also spelled --wandb-artifact)
    --wandb-run-id ID      ENTITY/PROJECT/ID, or ID in the project of --config or the default one
    --split val|test       which images (default: val)
    --config FILE          settings, if the student has none (an export without its run folder); repeatable
    --import FILE.py       run a file of your own code first, with which the student was trained; repeatable
                           (docs/own_code.md)
    --section.key=VALUE    a setting to change, such as --data.path=... if the data have moved
    --baseline RUN_FOLDER  the same student trained without teachers, to compare with (default: the baseline that its
                           run has trained)
    --no-teachers          do not measure its teachers, whose logits are read from the cache or computed
    --cost                 also parameters, multiply-adds, size, latency and images per second
    --dump-logits FILE     instead: write its logits for all images of every split, for use as a teacher:
                           --teachers='[{logits: FILE}]'
    --dump-views N         with --dump-logits: also those of N fixed views per training image, for --cache.mode=fixed
    --images PATH          instead: the most probable classes of an image, or of all images in a folder and its
                           subfolders; exit status 0 if any could be read; no data set is loaded
    --top N                with --images: the number of classes (default: 5)
    --csv FILE             with --images: also write them as a table
    --export KINDS         instead: export the student, checked for equal logits; KINDS is one or more of
                           timm (stock timm loads it), onnx, program (runs with torch alone), hub (for --push),
                           onnx-int8 (8-bit integers, for CPUs; not kept if slower than float32 or half a point of
                           accuracy worse; needs the data)
    --keep-int8            with --export onnx-int8: keep it even so
    --out FOLDER           with --export: target folder (default: RUN/export/KIND); several kinds get subfolders of it
    --repo ORG/NAME        with --export hub: the repository; without --push, only list what would be sent
    --push                 with --export hub: send it; a new repository is private
    --no-wandb             do not use Weights & Biases
    --help                 this text

The run's own precision, memory format and batch size are used, so its validation accuracy is reproduced exactly.
Results are printed, written as evaluation-SPLIT.json and logged to W&B as a run of job type "evaluation".

exit status: 0 done, 2 a mistake in the arguments or files (one clear message), 1 a failure of this program
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads spin, which starves other processes

import argparse
import re
from pathlib import Path

from kd_core.errors import CommandLine, UserError
from kd_core.export.kinds import FILES, check_repo, requirements_of
from kd_core.files import check_writable, local_path
from kd_core.run.script import answer_early, run_script, show_help


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line -> switches, checked, and the words that are settings.  Imports nothing heavy."""
    parser = CommandLine("evaluate_kd.py")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--checkpoint")
    source.add_argument("--artifact", "--wandb-artifact")
    source.add_argument("--wandb-run-id")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--import", dest="imports", action="append", default=[])
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dump-logits")
    instead.add_argument("--images")
    instead.add_argument("--export")
    parser.add_argument("--dump-views", default="0")
    parser.add_argument("--baseline")
    for switch in ("--top", "--csv", "--out", "--repo"):
        parser.add_argument(switch)
    for switch in ("--no-teachers", "--cost", "--push", "--keep-int8", "--no-wandb", "--help", "-h"):
        parser.add_argument(switch, action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if options.help or options.h:
        show_help(__doc__ or "")
    if not (options.checkpoint or options.artifact or options.wandb_run_id):
        raise UserError(
            "say what to evaluate: --checkpoint PATH, --artifact ENTITY/PROJECT/NAME:ALIAS or --wandb-run-id ID"
        )
    if not re.fullmatch(r"\d{1,4}", options.dump_views) or (int(options.dump_views) and not options.dump_logits):
        raise UserError(f"--dump-views: {options.dump_views}: a number of views, beside --dump-logits FILE")
    if options.dump_logits and not options.dump_logits.endswith(".safetensors"):
        raise UserError(f"--dump-logits: {options.dump_logits}: the name of a .safetensors file is needed")
    if options.dump_logits:
        check_writable(local_path(options.dump_logits, "--dump-logits").parent, "--dump-logits")
    check_images(options)
    check_export(options)
    return options, rest


def check_images(options: argparse.Namespace) -> None:
    """UserError for what --images, --top and --csv cannot mean."""
    for switch in ("top", "csv"):
        if getattr(options, switch) is not None and options.images is None:
            raise UserError(f"--{switch}: belongs to --images FILE_OR_FOLDER")
    if options.top is not None and not re.fullmatch(r"0*[1-9]\d{0,5}", options.top):
        raise UserError(f"--top: {options.top}: a number of classes is needed, 1 or more")
    if options.csv is not None:
        path = local_path(options.csv, "--csv")
        if path.is_dir():
            raise UserError(f"--csv: {path} is a folder; the name of a file is needed")
        check_writable(path.parent, "--csv")


def check_export(options: argparse.Namespace) -> None:
    """UserError for what --export and its switches cannot mean; `export` becomes a list of kinds."""
    kinds = [] if options.export is None else list(dict.fromkeys(options.export.split(",")))
    if unknown := [kind for kind in kinds if kind not in FILES]:
        raise UserError(f"--export: unknown kind {unknown[0]!r}, allowed: {', '.join(FILES)}")
    if options.out is not None and not kinds:
        raise UserError("--out: belongs to --export KINDS")
    if (options.repo is not None or options.push) and "hub" not in kinds:
        raise UserError(f"{'--push' if options.push else '--repo'}: belongs to --export hub")
    if options.keep_int8 and "onnx-int8" not in kinds:
        raise UserError("--keep-int8: belongs to --export onnx-int8")
    if "hub" in kinds:
        check_repo(options.repo, push=options.push)
    requirements_of(kinds)
    options.export = kinds


if __name__ == "__main__":  # before the imports below, which take seconds
    answer_early(parse, "evaluate_kd.py")

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

import kd_core.zoo  # noqa: F401 - registers the cifar_ networks with timm
import kd_methods
from kd_core import config as configuration
from kd_core import metrics
from kd_core.config import Config
from kd_core.config.privacy import redacted
from kd_core.data.dataset import Data, Split
from kd_core.errors import first_line, printable
from kd_core.evaluation import cost
from kd_core.evaluation.figures import Predictions, evaluate, logged
from kd_core.evaluation.predictions import Observer
from kd_core.evaluation.teacher_check import validation_errors
from kd_core.evaluation.trained import (
    CommandSettings,
    TrainedStudent,
    cuts_in_words,
    find_baseline,
    find_teachers,
    open_student,
)
from kd_core.export.command import export_student
from kd_core.export.dump_logits import dump_logits
from kd_core.export.predict_files import print_predictions
from kd_core.files import writable_folder, write_json, writing
from kd_core.loop.processes import create_accelerator
from kd_core.loop.ranks import is_first_process
from kd_core.models.build import LoadedModel, count_parameters
from kd_core.models.network import Network, from_export
from kd_core.models.predict import Images, Predictor
from kd_core.report import console
from kd_core.run import artifacts
from kd_core.run.folder import RunFolder, new_run_id
from kd_core.run.tracking import Tracker, start_tracking
from kd_core.teachers.logits import TeacherLogits


def main(arguments: list[str]) -> None:
    options, words = parse(arguments)
    given = read_settings(options, words)
    student = open_student(*find_student(options, given))
    if options.images is not None or options.export:
        if is_first_process():  # one process is enough
            if options.export:
                out = local_path(options.out, "--out") if options.out else None
                hub = {"repo": options.repo, "push": options.push}
                export_student(student, given, options.export, out, keep_int8=options.keep_int8, **hub)
            else:
                print_predictions(student.loaded, options.images, top=int(options.top or 5), csv=options.csv)
        return

    config = student.config(given)
    asked = config.training.mixed_precision
    accelerator = create_accelerator(None if asked == "auto" else asked)  # which is measured before training
    config = configuration.with_precision(config, accelerator.mixed_precision)
    with accelerator.local_main_process_first():
        data = student.data(config)
    predict = Predictor(accelerator, config)
    network = from_export(student.loaded, data, predict, str(student.export))
    if options.dump_logits:
        path = Path(options.dump_logits).expanduser()
        dump_logits(path, int(options.dump_views), data, network, predict)
    else:
        measure(options, given, student, data, predict, network)
    accelerator.end_training()


def read_settings(options: argparse.Namespace, words: list[str]) -> CommandSettings:
    """What --config, --import and `words` such as --section.key=VALUE say; runs the files of --import."""
    layers = configuration.read_layers(options.config)
    overrides, own_code = configuration.parse_with_code(words, options.imports, *layers)
    return CommandSettings(options.config, overrides, own_code)


def find_student(options: argparse.Namespace, given: CommandSettings) -> tuple[Path, str | None]:
    """The folder that holds the exported student, and the artifact's name if it came from W&B."""
    if options.checkpoint:
        path = local_path(options.checkpoint, "--checkpoint")
        if not path.is_dir():
            raise UserError(f"--checkpoint: no such folder: {path}; a run folder or an exported student is needed")
        return path, None
    where = given.of_artifacts()
    cache = where.cache.folder / "artifacts"
    if options.artifact:
        return artifacts.download(options.artifact, cache, "--artifact"), options.artifact
    *path_of_project, run_id = options.wandb_run_id.split("/")
    project = "/".join(path_of_project or filter(None, (where.wandb.entity, where.wandb.project)))
    best, latest = (f"{project}/model-{run_id}:{alias}" for alias in ("best", "latest"))
    try:
        folder, name = artifacts.download(best, cache, "--wandb-run-id"), best
    except artifacts.NoSuchArtifact as error:
        try:
            folder, name = artifacts.download(latest, cache, "--wandb-run-id"), latest
        except artifacts.NoSuchArtifact:
            raise UserError(f"{error}; nor is there {latest!r}") from None
    print(f"run {run_id}: evaluating {name}")
    return folder, name


def select_split(data: Data, name: str) -> Split:
    """The validation or the test split; UserError if the data have none."""
    split = data.val if name == "val" else data.test()
    if split is None:
        raise UserError(
            f"--split {name}: the data have no such split; try --split {'test' if name == 'val' else 'val'}"
        )
    return split


def measure(
    options: argparse.Namespace,
    given: CommandSettings,
    student: TrainedStudent,
    data: Data,
    predict: Predictor,
    network: Network,
) -> None:
    """Measure the student on one split, beside its teachers and itself without them; all processes call it together."""
    accelerator, config = predict.accelerator, predict.config

    def say(text: str) -> None:
        if accelerator.is_main_process:
            print(printable(text))

    other, cuts = student.other_data(data), student.other_cuts(config)
    home = None if other or cuts else student.run  # results on other data or splits are not the run's
    # by each process, so that none waits for another that has ended
    check_writable(home or Path(config.output_dir), "--checkpoint" if home else "output_dir")
    split = select_split(data, options.split)
    if other:
        say(f"note: {other}; some of these images may be among them. The results are kept apart from the run's")
    else:
        for each in filter(None, (split, data.val)):  # the temperature is fitted on validation images
            student.require_unseen(each, data, config)
        if cuts:
            words = f"the splits are not those of its training, where {cuts_in_words(cuts)}"
            say(f"note: {words}. The results are kept apart from the run's")
    classify = metrics.through_evaluate() if accelerator.is_main_process else metrics.classification
    baseline = baseline_of(student, config, data, options.baseline, say)
    members = []
    if not options.no_teachers:
        members = find_teachers(student, config, data, given, validation=options.split == "val", notify=say)
    teachers, nobody = TeacherLogits(members, predict), TeacherLogits([], predict)
    images = Images(split, accelerator.device, config.data.store)
    try:
        teacher_logits = teachers.clean_logits(images, "measuring")
        errors = validation_errors(config.kd, teachers, data, predict) if members else None
    except UserError as error:  # such as a file of logits without the test split
        say(f"teachers are not measured: {first_line(error)}")
        teacher_logits = errors = None

    kd = config.kd.without_features()
    method = kd_methods.build(kd, num_classes=data.num_classes, teacher_errors=errors).to(accelerator.device)
    alone = alone_of(from_export(baseline, data, predict, "--baseline"), predict) if baseline else None
    observe = Observer(predict, data, network, nobody if teacher_logits is None else teachers, method, alone)
    found = observe(options.split, split, images=images, teacher_logits=teacher_logits)
    fitted = found if options.split == "val" else None  # temperature scaling is fitted on validation images
    if data.val and not fitted:
        fitted = Observer(predict, data, network, nobody, method)("val", data.val)
    if accelerator.is_main_process:
        measured = evaluate(found, fitted, classify)
        if options.cost:
            measured["cost"] = cost.measure(
                network.model,
                student.loaded.preprocess.size,
                accelerator.device,
                checkpoint=student.export,
                precision=accelerator.mixed_precision,
                channels_last=config.training.channels_last,
            )
        record(config, replace(student, run=home), measured, found, given.files, use_wandb=not options.no_wandb)


def baseline_of(
    student: TrainedStudent, config: Config, data: Data, named: str | None, say: Callable[[str], None]
) -> LoadedModel | None:
    """The same student trained without teachers; None, which is said, if there is none and no --baseline names one."""
    try:
        return find_baseline(student, config, data, named)
    except UserError as error:
        if named:
            raise
        say(f"the student alone is not measured: {first_line(error).removeprefix('--baseline: ')}")
        return None


def alone_of(network: Network, predict: Predictor) -> Callable[[Images, str], Tensor]:
    """Gives the logits of the student alone for images and the name of their split."""
    return lambda images, name: predict(network.model, images, network.views, f"student alone on {name}")


def record(
    config: Config,
    student: TrainedStudent,
    measured: dict[str, Any],
    found: Predictions,
    files: list[str],
    *,
    use_wandb: bool,
) -> None:
    """Write, log and print what `evaluate` returned for the split of `found`; `files`: of --config."""
    loaded, split = student.loaded, found.split
    home, run_id = results_folder(config, student)
    about = {
        "model_name": loaded.architecture,
        "parameters": count_parameters(loaded.model),
        "kd_method": config.kd.type,
        "temperature": config.kd.model_dump().get("temperature"),
        "teachers": [teacher.model or teacher.weights or teacher.logits for teacher in config.teachers],
        "num_teachers": len(config.teachers),
        "checkpoint_path": student.artifact or str(student.export),
    }
    target = home.path / f"evaluation-{split}.json"
    own_teachers = {"measured_teachers": measured["teachers"]} if "teachers" in measured else {}
    with writing(home.path):
        write_json(target, redacted({**measured, **own_teachers, **about}))  # `teachers`: as configured
    page = write_page(config, student, home, measured, found, about, files)
    tracker = start_tracking(
        config,
        home,
        run_id=new_run_id(),
        enabled=True,
        use_wandb=use_wandb,
        notify=print,
        job_type="evaluation",
        run_name=f"eval-{split}-{config.experiment}-{run_id}",
        tags=[split, run_id],
        group=config.experiment,
        facts={
            **config.flat(loaded.num_classes),
            "parameters": about["parameters"],
            "data_fingerprint": loaded.data_fingerprint,
        },
    )
    url = tracker.url  # which it forgets when it finishes
    log(tracker, student, split, measured, about, page)

    print(printable(console.evaluation(f"{loaded.architecture}, {split} split", measured)))
    if "cost" in measured:
        print(f"\n{console.costs(measured['cost'])}")
    print(f"written to {target}" + (f"; W&B: {url}" if url else ""))
    if page:
        print(f"to look at: {page}")


def write_page(
    config: Config,
    student: TrainedStudent,
    home: RunFolder,
    measured: dict[str, Any],
    found: Predictions,
    about: dict[str, Any],
    files: list[str],
) -> Path | None:
    """Write the report in folder `home` with this evaluation; None without a report, and for a run's other students."""
    run = home if student.run else None
    if not config.evaluation.report or (run and not (run.finished and run.has_selected(student.export))):
        return None
    from kd_core.report.run_page import renew_report  # not above: imports matplotlib

    described = {
        "student_model": about["model_name"],
        "parameters": about["parameters"],
        "kd_type": about["kd_method"],
        "num_teachers": about["num_teachers"],
        "seed": config.training.seed,
    }
    source = ["--artifact", student.artifact] if student.artifact else ["--checkpoint", str(student.folder)]
    source += [word for file in files for word in ("--config", file)]
    with writing(home.path):
        return renew_report(
            home.path,
            run,
            measured,
            found,
            student=described,
            settings=config.to_yaml(),
            imports=config.imports,
            source=source,
        )


def results_folder(config: Config, student: TrainedStudent) -> tuple[RunFolder, str]:
    """Where results are written, the run folder or a new one for a student without, and the id of the student's run."""
    if student.run:
        home = RunFolder(student.run)
        return home, home.summary().get("run_id", home.path.name)
    run_id = student.artifact_name.removeprefix("model-") if student.artifact_name else student.folder.name
    return RunFolder(writable_folder(Path(config.output_dir) / f"evaluation-{run_id}", "output_dir")), run_id


def log(
    tracker: Tracker,
    student: TrainedStudent,
    split: str,
    measured: dict[str, Any],
    about: dict[str, Any],
    page: Path | None,
) -> None:
    """Log an evaluation as a W&B run of its own."""
    if student.artifact:
        tracker.use_artifact(artifacts.version_of(student.artifact))
    loss, accuracy = measured["loss_ce"], measured["accuracy"]
    tracker.log({**logged(measured), f"{split}/loss": loss, f"{split}/accuracy_percent": 100 * accuracy})
    headlines = {f"{split}_loss": loss, f"{split}_accuracy": accuracy, f"{split}_accuracy_percent": 100 * accuracy}
    tracker.summarize({key: value for key, value in about.items() if key != "parameters"} | headlines)
    if page:
        tracker.record_report(page.parent)
    tracker.finish()


if __name__ == "__main__":
    run_script(main, "evaluate_kd.py")
