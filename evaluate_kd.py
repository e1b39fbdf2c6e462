#!/usr/bin/env python
"""Evaluate a trained student.

    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34                  its validation split, as in training
    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34 --split test     the test split
    python evaluate_kd.py --artifact ENTITY/PROJECT/model-ab12cd34:best       a W&B model artifact, nothing else needed
    python evaluate_kd.py --wandb-run-id ENTITY/PROJECT/ab12cd34              that run's best model, else its latest
    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34 --images cat.jpg         the classes of a picture
    python evaluate_kd.py --checkpoint runs/dynamic-ab12cd34 --export onnx,program    the student for elsewhere

switches:
    --checkpoint PATH      a run folder, or an exported student (config.json and model.safetensors)
    --artifact NAME        ENTITY/PROJECT/NAME:ALIAS (also spelled --wandb-artifact)
    --wandb-run-id ID      ENTITY/PROJECT/ID, or ID in the project of --config or the default one
    --split val|test       which images (default: val)
    --config FILE          settings, where the student carries none (an export without its run folder); repeatable
    --import FILE.py       run a file of your own code first, which the student was trained with; repeatable
                           (docs/own_code.md)
    --section.key=VALUE    a setting to change, such as --data.path=... where the data lie elsewhere now
    --baseline RUN_FOLDER  the same student trained without teachers, to compare with (default: the one that its run has
                           trained for comparison)
    --no-teachers          do not measure its teachers, whose logits are read from the cache or computed
    --cost                 also parameters, multiply-adds, size, latency and images per second
    --dump-logits FILE     write its logits for all images of every split instead, as a file that can teach:
                           --teachers='[{logits: FILE}]'
    --dump-views N         with it: also those of the N fixed views of each training image, for --cache.mode=fixed
    --images PATH          instead: the most probable classes of a picture, or of all pictures in a folder and below;
                           status 0 if any could be read; no data set is loaded
    --top N                with it: so many classes (default: 5)
    --csv FILE             with it: write them as a table, too
    --export KINDS         instead: export the student, checked for equal logits; KINDS is one or more of
                           timm (stock timm loads it), onnx, program (torch alone runs it), hub (for --push)
    --out FOLDER           with it: where to (default: RUN/export/KIND; of several kinds each gets a folder in it)
    --repo ORG/NAME        with --export hub: the repository; without --push only what would be sent is listed
    --push                 with --export hub: send it, to a private repository if there is none yet
    --no-wandb             no Weights & Biases run
    --help                 this text

The run's own precision, memory format and batch size are used, so that its validation accuracy is found again exactly.
Results are printed, written as evaluation-SPLIT.json and logged to W&B as a run of job type "evaluation".

exit status: 0 done, 2 a mistake in the arguments or files (one clear message), 1 a failure of this program
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads spin, which starves other processes

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kd_core.zoo  # noqa: F401 - registers the cifar_ networks with timm
import kd_methods
from kd_core import config as configuration
from kd_core import metrics
from kd_core.config import Config, Layer, TeacherConfig, own_code
from kd_core.data.dataset import Data, Split, load_data
from kd_core.data.views import fixed_view_ids
from kd_core.errors import UserError, first_line, printable
from kd_core.evaluation import cost
from kd_core.evaluation.figures import OPTIONAL, Predictions, evaluate, logged
from kd_core.evaluation.predictions import Observer, Pupil, pupil_of
from kd_core.export import card
from kd_core.export import predict_files as pictures
from kd_core.export import write as exports
from kd_core.files import check_writable, local_path, read_object, sha256_of, writable_folder, write_json
from kd_core.loop.processes import create_accelerator, is_first_process
from kd_core.models import build as models
from kd_core.models.predict import Images, Predictor
from kd_core.privacy import redacted
from kd_core.report import console as report
from kd_core.run import artifacts
from kd_core.run.folder import RunFolder, new_run_id, read_metrics
from kd_core.run.script import run_script
from kd_core.run.tracking import start_tracking
from kd_core.teachers import load as teachers
from kd_core.teachers.logits import Panel
from kd_core.teachers.logits_file import write_logits


def parse(arguments: list[str]) -> tuple[argparse.Namespace, Layer]:
    parser = configuration.CommandLine("evaluate_kd.py")
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
    for switch in ("--no-teachers", "--cost", "--push", "--no-wandb", "--help", "-h"):
        parser.add_argument(switch, action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if options.help or options.h:
        print(__doc__)
        sys.exit(0)
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
    check_pictures(options)
    check_export(options)
    layers = configuration.read_layers(options.config)
    overrides, options.own_code = configuration.parse_with_code(rest, options.imports, *layers)
    return options, overrides


def check_pictures(options: argparse.Namespace) -> None:
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
    """UserError for what --export, --out, --repo and --push cannot mean; `export` becomes a list of kinds."""
    kinds = [] if options.export is None else list(dict.fromkeys(options.export.split(",")))
    if unknown := [kind for kind in kinds if kind not in exports.FILES]:
        raise UserError(f"--export: unknown kind {unknown[0]!r}, allowed: {', '.join(exports.FILES)}")
    if options.out is not None and not kinds:
        raise UserError("--out: belongs to --export KINDS")
    if (options.repo is not None or options.push) and "hub" not in kinds:
        raise UserError(f"{'--push' if options.push else '--repo'}: belongs to --export hub")
    if "hub" in kinds:
        exports.check_repo(options.repo, push=options.push)
    exports.requirements_of(kinds)
    options.export = kinds


def find_student(options: argparse.Namespace, overrides: Layer) -> tuple[Path, str | None]:
    """The folder that holds the exported student, and the artifact's name if it came from W&B."""
    if options.checkpoint:
        path = local_path(options.checkpoint, "--checkpoint")
        if not path.is_dir():
            raise UserError(f"--checkpoint: no such folder: {path}; a run folder or an exported student is needed")
        return path, None
    where = settings_of_artifacts(options, overrides)
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


def settings_of_artifacts(options: argparse.Namespace, overrides: Layer) -> Config:
    """The settings that say where artifacts are looked for and kept: `wandb` and `cache`."""
    layers = [*configuration.read_layers(options.config), overrides]
    wanted = ("wandb", "cache")
    return configuration.resolve(
        [Layer(layer.origin, {key: layer.values[key] for key in wanted if key in layer.values}) for layer in layers]
    ).config


def run_folder_of(path: Path) -> Path | None:
    """The run folder that `path` is or lies in, if any."""
    return next((p for p in (path, *path.resolve().parents[:3]) if (p / "summary.json").is_file()), None)


def read_config(folder: Path, artifact: str | None, options: argparse.Namespace, overrides: Layer) -> Config:
    """The configuration that the student was trained with, or --config, plus overrides."""
    own = next((p for p in (folder, run_folder_of(folder)) if p and (p / "config.yaml").is_file()), None)
    if options.config:
        settings = configuration.read_layers(options.config)
    elif own:
        settings = [configuration.read_record(own / "config.yaml")]
    else:
        raise UserError(f"--config: needed here, {folder} does not say which data its student was trained on")
    layers = list(settings)
    if not run_folder_of(folder):  # a file from elsewhere does not decide where things are written here
        layers.append(Layer("defaults", {"output_dir": "runs", "cache": {"dir": None}}))
    if artifact and artifact.count("/") == 2:  # beside it, wherever a sweep or a person has put it
        entity, project, _ = artifact.split("/")
        layers.insert(len(settings), Layer("the artifact's name", {"wandb": {"entity": entity, "project": project}}))
    return configuration.resolve([*layers, overrides, options.own_code]).config


def tell_other_code(folder: Path) -> None:
    """Say so where the files that --import has named are not those that the run was trained with."""
    run = run_folder_of(folder)
    kept = sorted((run / configuration.IMPORTS).glob("*.py")) if run else []
    named = {file.path.name: file.digest for file in own_code.files()}
    for file in kept:
        if file.name in named and sha256_of(file) not in named.values() and is_first_process():
            print(f"note: --import {file.name} is not what the run was trained with, of which {file} is a copy")


def read_data(config: Config, loaded: models.LoadedModel) -> Data:
    """The data, their images stored at the size at which the student has seen them."""
    own = config
    if loaded.image_size and config.data.store_size is None:
        size = Layer("the student's config.json", {"data": {"store_size": loaded.image_size}})
        own = configuration.resolve([Layer("its run", config.model_dump(mode="json")), size]).config
    return load_data(own.data, model_sizes=[loaded.preprocess.size], cache_dir=config.cache.folder)


def select_split(data: Data, name: str) -> Split:
    split = data.val if name == "val" else data.test()
    if split is None:
        raise UserError(
            f"--split {name}: the data have no such split; try --split {'test' if name == 'val' else 'val'}"
        )
    return split


def find_teachers(
    options: argparse.Namespace,
    config: Config,
    folder: Path,
    artifact: str | None,
    data: Data,
    say: Callable[[str], None],
) -> list[teachers.Teacher]:
    """The run's teachers; none, with a line that says why, where one of them cannot be found."""
    if options.no_teachers or not config.teachers:
        return []
    members = []
    try:
        for index, teacher in enumerate(config.teachers):
            if not (options.config or run_folder_of(folder)):
                require_at_hand(teacher, index, artifact)
            trained = teachers.find_teacher(config, index, data) if teacher.train else None
            if teacher.train and not trained:
                raise UserError(f"teachers[{index}]: no run in {config.output_dir} has trained it on these data")
            members.append(teachers.load(teacher, index, data, config, trained))
            for note in members[-1].notes:
                say(note)
            if options.split == "val" and members[-1].saw_validation in teachers.EXPOSED:
                say(f"teacher {index} ({members[-1].name}) {teachers.EXPOSED[members[-1].saw_validation]}")
    except UserError as error:
        say(f"teachers are not measured: {first_line(error)}")
        return []
    return members


def require_at_hand(teacher: TeacherConfig, index: int, artifact: str | None) -> None:
    """UserError for a teacher that would be fetched because settings say so that came with a student from elsewhere.

    What lies on this machine is read as data, and artifacts of a project that the user has named may be fetched.
    """
    source = teacher.weights or ""
    if (teacher.model or "").startswith("hf-hub:"):  # its description would be fetched, whatever its weights are
        source = str(teacher.model)
    project, named = (name.rpartition("/")[0] for name in (artifact or "", source.partition("wandb:")[2]))
    if not (source == "pretrained" or source.startswith(("hf-hub:", "wandb:"))) or (artifact and named == project):
        return
    raise UserError(
        f"teachers[{index}]: {source} would be fetched, and the student's own settings alone name it; "
        "--config FILE with these teachers uses it"
    )


def find_baseline(
    options: argparse.Namespace, config: Config, folder: Path, loaded: models.LoadedModel, data: Data
) -> models.LoadedModel | None:
    """The same student trained without teachers: --baseline, or the one that the run has trained for comparison.

    UserError if it is another network, or has been trained with teachers, or on other data or images of them.
    """
    path, run = None, run_folder_of(folder)
    if options.baseline:
        path = local_path(options.baseline, "--baseline")
        if not path.is_dir():
            raise UserError(f"--baseline: no such folder: {path}; a run folder is needed")
    elif run and isinstance(stated := read_object(run / "summary.json").get("baseline_run"), str):
        path = local_path(stated, f"{run / 'summary.json'}: baseline_run")
    if path is None or not path.is_dir():
        return None
    alone = models.load_export(teachers.export_in(path))
    teachers.check_classes(alone, data, f"--baseline: {path}")
    if alone.architecture != loaded.architecture:
        raise UserError(f"--baseline: {path}: holds a {alone.architecture!r}, the student is a {loaded.architecture!r}")
    if (there := alone.data_fingerprint) != (here := loaded.data_fingerprint):
        raise UserError(f"--baseline: {path}: was trained on data with fingerprint {there}, the student on {here}")
    own = configuration.resolve([configuration.read_record(teachers.export_in(path) / "config.yaml")]).config
    if own.kd.type != kd_methods.LABEL_ONLY:
        raise UserError(f"--baseline: {path}: was trained with kd.type={own.kd.type}, not {kd_methods.LABEL_ONLY}")
    for key in ("train_size", "val_size", "val_split", "test_size", "split_seed"):
        there, here = getattr(own.data, key), getattr(config.data, key)
        if there != here:
            raise UserError(f"--baseline: {path}: was trained with data.{key}={there}, the student with {here}")
    return alone


def main(arguments: list[str]) -> None:
    options, overrides = parse(arguments)
    folder, artifact = find_student(options, overrides)
    tell_other_code(folder)
    export = teachers.export_in(folder)
    loaded = models.load_export(export)
    if options.images is not None or options.export:
        if is_first_process():  # the others have nothing to add
            if options.export:
                write_exports(options, overrides, folder, artifact, export, loaded)
            else:
                tell_pictures(options, loaded)
        return
    config = read_config(folder, artifact, options, overrides)

    # -------------------------------------------------------------------------------------------------- data
    accelerator = create_accelerator(config.training.mixed_precision)
    config = configuration.with_precision(config, accelerator.mixed_precision)
    with accelerator.local_main_process_first():
        data = read_data(config, loaded)
    teachers.check_classes(loaded, data, str(export))

    # ----------------------------------------------------------------------------------------------- predict
    predict = Predictor(accelerator, config)
    pupil = pupil_of(loaded, config, data, predict)
    if options.dump_logits:
        dump(Path(options.dump_logits).expanduser(), int(options.dump_views), data, pupil, predict)
        accelerator.end_training()
        return

    def say(text: str) -> None:
        if accelerator.is_main_process:
            print(printable(text))

    split = select_split(data, options.split)
    classify = metrics.through_evaluate() if accelerator.is_main_process else metrics.classification
    baseline = find_baseline(options, config, folder, loaded, data)
    panel = Panel(find_teachers(options, config, folder, artifact, data, say), predict)
    taught = ask_teachers(panel, Images(split, accelerator.device, config.data.store), say)
    method = kd_methods.build(config.kd, num_classes=data.num_classes).to(accelerator.device)
    student_alone = Observer(predict, data, pupil, Panel([], predict), method)
    observe = replace(
        student_alone,
        panel=panel if taught is not None else student_alone.panel,
        alone=pupil_of(baseline, config, data, predict) if baseline else None,
    )
    found = observe(options.split, split, taught=taught)
    fitted = found if options.split == "val" else student_alone("val", data.val) if data.val else None
    if accelerator.is_main_process:
        figures = evaluate(found, fitted, classify)
        if options.cost:
            figures["cost"] = cost.measure(
                pupil.model,
                loaded.preprocess.size,
                accelerator.device,
                checkpoint=export,
                precision=accelerator.mixed_precision,
                channels_last=config.training.channels_last,
            )
        tell(options, config, folder, artifact, export, loaded, figures, found)
    accelerator.end_training()


def ask_teachers(panel: Panel, images: Images, say: Callable[[str], None]) -> Tensor | None:
    """The teachers' logits [K,n,C] for `images`; None if they cannot be had, as from a file without the test split."""
    try:
        return panel.logits(images, "measuring")
    except UserError as error:
        say(f"teachers are not measured: {first_line(error)}")
        return None


def tell_pictures(options: argparse.Namespace, loaded: models.LoadedModel) -> None:
    """Print the classes of a person's own pictures, and write them as CSV if asked to."""
    files = pictures.files_in(local_path(options.images, "--images"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, unreadable = pictures.predict(loaded, files, top=int(options.top or 5), device=device)
    left_out = "".join(f"\n  {file}: {reason}" for file, reason in unreadable.items())
    if not found:
        raise UserError(f"--images: none of {len(files)} file(s) can be read as a picture:{left_out}")
    print(pictures.as_text(found))
    if left_out:
        print(printable(f"left out, since they cannot be read ({len(unreadable)}):{left_out}"), file=sys.stderr)
    if options.csv is not None:
        target = local_path(options.csv, "--csv")
        pictures.write_csv(target, found)
        print(f"{len(found)} pictures written to {target}")


def write_exports(
    options: argparse.Namespace,
    overrides: Layer,
    folder: Path,
    artifact: str | None,
    export: Path,
    loaded: models.LoadedModel,
) -> None:
    """Write every kind of export that was asked for, and push what is for the Hub."""
    run, kinds = run_folder_of(folder), options.export
    name = artifact.rpartition("/")[2].partition(":")[0] if artifact else folder.resolve().name
    home = local_path(options.out, "--out") if options.out else (run or Path("runs", name)) / "export"
    targets = {kind: home if options.out and len(kinds) == 1 else home / kind for kind in kinds}
    for kind, target in targets.items():
        check_writable(target.parent, "--out")
        exports.check_folder(target, kind)
    if {"timm", "hub"} & set(kinds):
        exports.require_timm(loaded)
    pixels, images, config, data = images_to_check(options, overrides, folder, artifact, loaded)
    checks = exports.prepare(loaded, pixels)
    lineage = card.Lineage(export, run, config, data)
    for kind, target in targets.items():
        if kind in ("timm", "hub") and not exports.in_stock_timm(loaded.architecture):
            print(
                f"note: stock timm has no {loaded.architecture}, so this export needs the code of this project "
                f"(import {exports.registered_by(loaded.architecture)}); --export program runs without it"
            )
        repo = options.repo if kind == "hub" else None
        describe = partial(card.render, kind, loaded, lineage, images=images, repo=repo)
        difference = exports.write(kind, loaded, target, checks, describe)
        print(f"{kind}: written to {target}; its logits differ by at most {difference:.1e} on {images}")
        if kind == "hub" and options.push:
            print(f"pushed to {exports.push(target, options.repo)}")
        elif kind == "hub":
            sizes = "\n".join(f"  {file.name}  {file.stat().st_size:,} bytes" for file in sorted(target.iterdir()))
            print(f"a dry run: --push would send to the Hub's {options.repo}:\n{sizes}")


def images_to_check(
    options: argparse.Namespace, overrides: Layer, folder: Path, artifact: str | None, loaded: models.LoadedModel
) -> tuple[Tensor, str, Config | None, dict[str, Any] | None]:
    """Stored images uint8 [n,S,S,3] to check exports on, what they are, and settings and data as far as they are known.

    They are validation images (without such, training images), or random ones where the data cannot be loaded.
    """
    count = exports.how_many(loaded.preprocess.size)
    config: Config | None = None
    try:
        config = read_config(folder, artifact, options, overrides)
        data = read_data(config, loaded)
        if loaded.image_size not in (None, data.image_size) or data.num_classes != loaded.num_classes:
            raise UserError("the data are not those that the student was trained on")
    except UserError as error:
        print(f"note: checked on random images, since the data cannot be used: {error}")
        side, seeded = loaded.stored_side, torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=seeded)
        return pixels, f"{count:,} random images", config, None
    split = data.val or data.train
    pixels = split.images[split.rows[:count]]
    return pixels, f"{len(pixels):,} images of the {split.name} split", config, data.describe()


def dump(path: Path, count: int, data: Data, pupil: Pupil, predict: Predictor) -> None:
    """Write the network's logits for all rows of the source's splits, and for `count` fixed views of training."""
    config, accelerator, network, views = predict.config, predict.accelerator, pupil.model, pupil.views
    augmentation: dict[str, Any] = {"crop_padding": config.data.crop_padding, "flip": config.data.flip}
    tensors: dict[str, Tensor] = {}
    about = {key: str(value).lower() for key, value in augmentation.items()}
    for split in filter(None, (data.train, data.val, data.test())):
        if split.fingerprint in about.values():
            continue  # validation or test images cut from training, which are among its rows
        everything = replace(split, rows=torch.arange(len(split.labels)))
        images = Images(everything, accelerator.device, config.data.store)
        tensors[split.name] = predict(network, images, views, f"logits of {split.name}").half().cpu()
        about[split.name] = split.fingerprint
        if split.name != "train" or not count:
            continue
        bank = []
        for number in range(count):

            def show(pixels: Tensor, rows: Tensor, number: int = number) -> Tensor:
                ids = fixed_view_ids(rows, torch.full_like(rows, number), **augmentation)
                return views.train(pixels, ids, channels_last=config.training.channels_last)

            bank.append(predict(network, images, views, f"view {number + 1} of {count}", show).half().cpu())
        tensors["train_views"], about["train_views"] = torch.stack(bank, 1), split.fingerprint
    if accelerator.is_main_process:
        write_logits(path, tensors, about)
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        more = f" --cache.mode=fixed --cache.views={count}" if count else ""
        print(f"logits of {shapes} written to {path}; to teach with them: --teachers='[{{logits: {path}}}]'{more}")


def tell(
    options: argparse.Namespace,
    config: Config,
    folder: Path,
    artifact: str | None,
    export: Path,
    loaded: models.LoadedModel,
    figures: dict[str, Any],
    found: Predictions,
) -> None:
    """Print, write and log the results: what `evaluate` gave for what was `found` on a split."""
    name, run = options.split, run_folder_of(folder)
    if run:
        run_id, home = read_object(run / "summary.json").get("run_id", run.name), run
    else:
        run_id = artifact.rpartition("/")[2].partition(":")[0].removeprefix("model-") if artifact else folder.name
        home = writable_folder(Path(config.output_dir) / f"evaluation-{run_id}", "output_dir")
    result = {
        **figures,
        **({"measured_teachers": figures["teachers"]} if "teachers" in figures else {}),  # `teachers`: as configured
        "model_name": loaded.architecture,
        "parameters": models.count_parameters(loaded.model),
        "kd_method": config.kd.type,
        "temperature": config.kd.model_dump().get("temperature"),
        "teachers": [teacher.model or teacher.weights or teacher.logits for teacher in config.teachers],
        "num_teachers": len(config.teachers),
        "checkpoint_path": artifact or str(export),
    }
    target = home / f"evaluation-{name}.json"
    write_json(target, redacted(result))
    page, own = None, RunFolder(home)
    if config.evaluation.report and (run is None or (own.finished and own.has_selected(export))):
        page = write_page(config, run, home, result, figures, found)

    tracker = start_tracking(
        config,
        RunFolder(home),
        run_id=new_run_id(),
        enabled=True,
        use_wandb=not options.no_wandb,
        notify=print,
        job_type="evaluation",
        run_name=f"eval-{name}-{config.experiment}-{run_id}",
        tags=[name, run_id],
        group=config.experiment,
        facts={
            **config.flat(loaded.num_classes),
            "parameters": result["parameters"],
            "data_fingerprint": loaded.data_fingerprint,
        },
    )
    if artifact:
        tracker.use_artifact(artifacts.version_of(artifact))
    tracker.log(
        {**logged(figures), f"{name}/loss": figures["loss_ce"], f"{name}/accuracy_percent": 100 * figures["accuracy"]}
    )
    kept = ("model_name", "teachers", "kd_method", "temperature", "num_teachers", "checkpoint_path")
    tracker.summarize(
        {key: result[key] for key in kept}
        | {
            f"{name}_loss": figures["loss_ce"],
            f"{name}_accuracy": figures["accuracy"],
            f"{name}_accuracy_percent": 100 * figures["accuracy"],
        },
    )
    if page:
        tracker.record_report(page.parent)
    tracker.finish()

    print(printable(report.evaluation(f"{loaded.architecture}, {name} split", figures)))
    if "cost" in figures:
        print(f"\n{report.costs(figures['cost'])}")
    print(f"written to {target}" + (f"; W&B: {tracker.url}" if tracker.url else ""))
    if page:
        print(f"to look at: {page}")


def write_page(
    config: Config,
    run: Path | None,
    home: Path,
    result: dict[str, Any],
    figures: dict[str, Any],
    found: Predictions,
) -> Path:
    """The report in folder `home`; a run's report and summary keep what they knew and these figures do not tell."""
    from kd_core.report.run_page import SPLITS, write_report  # and with it matplotlib, which takes a second

    evaluations, rows = {found.split: figures}, []
    told = {"cost": figures["cost"]} if "cost" in figures else {}
    if run:
        own = RunFolder(run)
        for split in SPLITS:
            file = run / "report" / f"evaluation-{split}.json"
            before = read_object(file) if file.is_file() else {}
            if before.keys() >= figures.keys() - {"cost", *OPTIONAL}:
                evaluations[split] = {**before, **evaluations.get(split, {})}
        known = own.summary().get("evaluation")
        told["evaluation"] = known if isinstance(known, dict) else {}
        told["evaluation"] |= {split: report.short(each) for split, each in evaluations.items()}
        summary, rows = own.write_summary(**told), read_metrics(own.metrics_file)
    else:
        summary = {
            "student_model": result["model_name"], "parameters": result["parameters"], "kd_type": result["kd_method"],
            "seed": config.training.seed, "evaluation": {found.split: report.short(figures)}, **told,
        }  # fmt: skip
    return write_report(
        home,
        summary=summary,
        settings=config.to_yaml(),
        environment=summary.get("environment", {}),
        rows=rows,
        evaluations=evaluations,
        predictions=found,
    )


if __name__ == "__main__":
    run_script(main, "evaluate_kd.py")
