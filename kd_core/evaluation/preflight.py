"""Everything before the first run: start Accelerate, load the data, check settings, networks and teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kd_core.config import Config, Resolved, TeacherConfig, own_code, with_precision
from kd_core.config.command_line import Options
from kd_core.data.dataset import load_data
from kd_core.data.plan import Sampler
from kd_core.data.recipes import Recipe
from kd_core.errors import UserError
from kd_core.evaluation.diagnosis import findings_lines
from kd_core.evaluation.teacher_check import check_teachers, require_unseen_validation
from kd_core.files import check_writable
from kd_core.loop.optimizer import create_optimizer
from kd_core.loop.processes import create_accelerator
from kd_core.loop.ranks import is_first_process
from kd_core.loop.signals import StopSignals
from kd_core.models import build as models
from kd_core.models import interface
from kd_core.models import network as networks
from kd_core.models.layer_features import layers_of
from kd_core.models.predict import Images, Predictor
from kd_core.run import precision
from kd_core.run.folder import open_run
from kd_core.run.job import Job
from kd_core.run.tracking import prepare as start_service
from kd_core.run.tracking import wandb_mode
from kd_core.teachers import dry_run
from kd_core.teachers import load as teachers
from kd_core.teachers.logits import TeacherLogits, together


def start(options: Options, resolved: Resolved, signals: StopSignals | None = None) -> tuple[Config, Job]:
    """Start Accelerate in the precision of the settings or the launcher, and load the data."""
    config = resolved.config
    check_writable(Path(config.output_dir), "output_dir")
    if not options.no_wandb:
        wandb_mode(config)  # UserError for an unknown mode, before anything starts
        if is_first_process():
            start_service(config)
    accelerator = create_accelerator(
        config.training.mixed_precision,
        deterministic=config.training.deterministic,
        choose=lambda device: precision.choose(config, options.resume, device, print),
    )
    config = with_precision(config, accelerator.mixed_precision)
    if is_first_process():
        if not options.config:
            print("no --config: running the quickstart, configs/quickstart.yaml")
        for notice in resolved.notices:
            print(notice)
        if note := models.renamed_note(config.model.name, "model.name"):
            print(note)

    wanted = config.model
    sizes = [models.input_size(wanted.name, wanted.img_size, wanted.stem, "model.name")]
    sizes += teachers.input_sizes(config)
    with accelerator.local_main_process_first():  # one process per machine decodes, the others find the result
        data = load_data(
            config.data,
            model_sizes=sizes,
            cache_dir=config.cache.folder,
            show_progress=accelerator.is_local_main_process,
        )
    job = Job(accelerator, data, not options.no_wandb, signals or StopSignals())
    for note in data.notes:
        job.say(f"  {note}")
    return config, job


def check_everything(config: Config, job: Job, resume: str, *, look_for_remedies: bool) -> list[teachers.Teacher]:
    """The teachers, after settings, networks and teachers have passed all checks; UserError lists what is wrong.

    With `look_for_remedies`, other settings are tried for weak teachers.  Teachers to be trained on demand are still
    stand-ins.
    """
    members = find_mistakes(config, job, resume)
    for note in [note for member in members for note in member.notes]:
        job.say(f"  {note}")
    ready = [member for member, teacher in zip(members, config.teachers, strict=True) if not teacher.train]
    check_members(ready, config, job, try_settings=look_for_remedies)
    return members


def check_members(members: list[teachers.Teacher], config: Config, job: Job, *, try_settings: bool) -> None:
    """Check teachers and print settings that would improve weak ones."""
    predict = Predictor(job.accelerator, config)
    if findings := check_teachers(members, job.data, predict, job.say_once, try_settings=try_settings).findings:
        job.say(findings_lines(findings))


class Problems:
    """Collects the messages of all mistakes."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def attempt(self, action: Callable[[], Any]) -> Any:
        """What `action` returns; None if it raises UserError, whose message is collected."""
        try:
            return action()
        except UserError as error:
            self.messages.append(str(error))

    def tell(self) -> None:
        """Raise UserError with all messages, if there are any."""
        if self.messages:
            raise UserError("\n".join(dict.fromkeys(self.messages)))


def find_mistakes(config: Config, job: Job, resume: str) -> list[teachers.Teacher]:
    """The teachers, if no mistake is found; untrained stand-ins for those to be trained on demand.

    UserError lists all mistakes that can be found before training.
    """
    problems, members = Problems(), list[Any]()
    features = bool(getattr(config.kd, "features", []))
    network = _check_run(config, job, problems, try_it=not features)
    problems.attempt(lambda: (Recipe.of(config, job.data), Recipe.of_second(config, job.data)))
    problems.attempt(lambda: interface.check_method(config.kd, len(config.teachers), job.data.num_classes))
    for index, teacher in enumerate(config.teachers):
        if teacher.train:
            members.append(_teacher_to_train(config, index, teacher, job, problems))
        else:
            members.append(problems.attempt(lambda i=index, t=teacher: teachers.load(t, i, job.data, config)))  # type: ignore[misc]
    if resume not in ("auto", "never"):
        problems.attempt(lambda: open_run(config, job.data.fingerprint_of(config.data), resume))
    if None not in members:
        problems.attempt(lambda: require_unseen_validation(config.kd, members, job.data))
        outputs = TeacherLogits(members, Predictor(job.accelerator, config))
        problems.attempt(lambda: outputs.check_files(job.data.shown))
    problems.tell()
    _check_with_teachers(network if features else None, config, job, members)
    job.reset_device()  # frees the memory of the trial passes
    return members


def _teacher_to_train(
    config: Config, index: int, teacher: TeacherConfig, job: Job, problems: Problems
) -> teachers.Teacher | None:
    """A stand-in for a teacher to be trained on demand; its own run is checked as well."""
    own = problems.attempt(lambda: teachers.training_config(config, index))
    if own is None:
        return None
    place = f"teachers[{index}]"
    keys = {key: f"{place}.{key}" for key in ("model", "img_size", "args")}
    keys["batch_size"] = f"{place}.train: data.batch_size"
    trained = teachers.find_teacher(config, index, job.data) is not None
    _check_run(own, job, problems, f"{place}.train: ", try_it=not trained, **keys)
    stand_in: teachers.Teacher | None = problems.attempt(lambda: teachers.untrained(config, index, job.data))
    return stand_in


def _check_run(
    config: Config, job: Job, problems: Problems, where: str = "", *, try_it: bool = True, **keys: str
) -> networks.Network | None:
    """Collect what is wrong with one run's settings.  If nothing is, train on one batch if `try_it`.

    `where` begins the messages; `keys` maps settings to the names they have in messages, where these differ.  Returns
    the student if it was not tried.
    """
    data, processes, batch, training = job.data, job.accelerator.num_processes, config.data.batch_size, config.training
    before = len(problems.messages)
    if batch % processes:
        problems.messages.append(
            f"{where}data.batch_size: {batch}, over all processes, is not divisible by {processes} processes"
        )
    elif batch % (processes * training.accumulate):
        over = f" over {processes} processes" if processes > 1 else ""
        problems.messages.append(
            f"{where}training.accumulate: {training.accumulate} equal parts cannot be made of data.batch_size "
            f"{batch}{over}"
        )
    sampler = Sampler.of(config, data)
    if config.data.unlabeled and config.part:
        problems.attempt(lambda: _require_both_kinds(sampler, config, processes, where))
    elif len(data.train) < batch:
        problems.messages.append(
            f"{where}data.batch_size: {batch} is larger than the {len(data.train)} training images"
        )
    if training.patience is not None and data.val is None:
        problems.messages.append(
            f"{where}training.patience: needs a validation split, and there is none (data.val_size is 0)"
        )
    fits = len(problems.messages) == before  # else a part may have no image
    steps = sampler.steps(config.part) // training.accumulate * training.max_epochs if fits else 0
    if training.ema and 0 < steps < training.ema.every:
        problems.messages.append(
            f"{where}training.ema.every: is {training.ema.every}, but training has {steps} steps, so nothing would be "
            "averaged; give a smaller number"
        )
    network = problems.attempt(lambda: networks.build(config, data))
    if network:
        problems.attempt(lambda: create_optimizer(network.model, training, torch.device("cpu")))
        args, own = network.about["model_args"], own_code.provider(own_code.NETWORK, network.architecture)
        key = keys.get("args", "model.args") if args else keys.get("model", "model.name")
        if args or own:  # others are timm's own, or the project's
            problems.attempt(lambda: network.check_export(key))
    if len(problems.messages) > before or not try_it:
        return network
    alone = TeacherLogits([], Predictor(job.accelerator, config))
    problems.attempt(lambda: _try_training(network, config, job, alone, **keys))
    return None


def _require_both_kinds(sampler: Sampler, config: Config, processes: int, where: str) -> None:
    """UserError unless a batch, or its part, has images with and without labels, as many in each process."""
    labeled, part, share = sampler.labeled_in(config.part), config.part, sampler.share
    if labeled == part or (labeled == 0 and share < 1) or labeled % processes:
        over = f", over {processes} processes" if processes > 1 else ""
        raise UserError(
            f"{where}data.unlabeled.share: {share:g} of {part} images is {part - labeled}{over}; each process needs as "
            "many images with labels and without as the others, and one of each at least"
        )
    if not sampler.steps(config.part) // config.training.accumulate:
        some, count = ("labeled", len(sampler.rows)) if labeled else ("unlabeled", sampler.number_unlabeled)
        raise UserError(
            f"{where}data.batch_size: {config.data.batch_size} holds more than the {count} {some} images of training"
        )


def _check_with_teachers(
    network: networks.Network | None, config: Config, job: Job, members: list[teachers.Teacher]
) -> None:
    """Train a student on one batch beside its teachers, if it is given; UserError if a named cache does not fit."""
    outputs = TeacherLogits(members, Predictor(job.accelerator, config))
    if network:
        _try_training(network, config, job, outputs)
    images = Images(job.data.shown, torch.device("cpu"), "host", Recipe.of(config, job.data))
    together(lambda: outputs.check_mode(images))
    if second := images.second(config, job.data):
        together(lambda: outputs.of_second_views().check_mode(second))


def _try_training(
    network: networks.Network, config: Config, job: Job, outputs: TeacherLogits, **keys: str
) -> None:
    """Train the student on one batch; `keys` as above.  With `kd.features`, teachers run if these are not known."""
    wanted, predict = config.model, Predictor(job.accelerator, config)
    usual = models.usual_size(wanted.name, wanted.stem)
    subject = dry_run.Subject(wanted.name, network.preprocess.size, usual, **keys)
    layers = layers_of(config.kd, len(outputs))
    shapes = [one.shapes for one in outputs.give_features(layers)] if layers else []
    term = dry_run.train_once(network, config, job.data, predict, subject, shapes, outputs.classifiers)
    if layers and term:
        outputs.keep_for(term, layers)
