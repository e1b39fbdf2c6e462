#!/usr/bin/env python
"""Train an image classifier by distillation from several teachers.

    python train_kd.py                                    quickstart: digits, three teachers, a few minutes
    python train_kd.py --config configs/cifar32/X.yaml    one of the shipped experiments
    accelerate launch train_kd.py --config X.yaml --kd.temperature=8      several GPUs
    python train_kd.py --config X.yaml --check            build everything, time 20 steps, estimate the cost
    wandb agent -f SWEEP_ID                               trials of a W&B sweep

switches:
    --config FILE         settings that differ from the defaults (without it: configs/quickstart.yaml); given several
                          times, later files win, key by key
    --import FILE.py      run a file of your own code first: networks, methods, losses, data sources; repeatable
                          (docs/own_code.md)
    --section.key=VALUE   any setting below, as YAML; whole sections too: --teachers='[{model: ..., train: ...}]'
    --resume auto|never|RUN_FOLDER   auto (default): continue the unfinished run with the same settings; a
                          finished one prints its result
    --fresh               the same as --resume never
    --no-wandb            do not use Weights & Biases; metrics.jsonl in the run folder is still written
    --seeds 0,1,2         train the student (and the baseline) with each of these seeds, one after another, and print
                          mean and standard deviation; training.seed is left out
    --check               build everything, measure the teachers, try other settings for weak ones, time 20 real
                          steps, then exit
    --print-config        print the resolved settings as YAML, then exit
    --help                this text

exit status: 0 done, 2 a mistake in the settings or files (one clear message), 1 a failure of this program (its
             traceback, and what to report); stopped by a signal: 143 SIGTERM, 138 SIGUSR1, 130 Ctrl-C.  After a signal
             the step is finished (with several processes: up to ten steps) and a checkpoint is written, from which
             the same command continues.  A second signal stops at once
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads spin, which starves other processes

from kd_core import config as configuration
from kd_core.config import command_line
from kd_core.loop import launcher
from kd_core.run.script import answer_early, run_script


def parse(arguments: list[str]) -> tuple[command_line.Options, configuration.Resolved]:
    """The command line -> switches and settings, which are printed if --print-config asks for it."""
    options, resolved = command_line.parse(arguments, __doc__ or "")
    if options.print_config:
        precision = launcher.precision(resolved.config.training.mixed_precision, os.environ)
        print(configuration.with_precision(resolved.config, precision).to_yaml(), end="", flush=True)
    return options, resolved


# Help, settings and mistakes in them need not wait seconds for the imports below.
if __name__ == "__main__" and answer_early(parse, "train_kd.py")[0].print_config:
    sys.exit(0)

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn

import kd_methods
from kd_core import evaluation, models, report
from kd_core.config import Config
from kd_core.data.plan import EpochPlan, Sampler, augmentation_of, epoch_seed
from kd_core.evaluation import TeacherCheck
from kd_core.loop.meter import Meter, NonFinite, Speed, StepLog
from kd_core.loop.optimizer import NonFiniteSteps, create_optimizer, learning_rate_at, set_learning_rate, take_step
from kd_core.models import AVERAGED, Images, Network, Predictor, Views, WeightAverage, WithFeatures, takes_average
from kd_core.run.checkpoints import Checkpoints, Progress
from kd_core.run.folder import RunFolder, open_folder, read_metrics, teacher_lock
from kd_core.run.job import Job, handled_signals
from kd_core.run.tracking import Tracker, send_rest, start_tracking
from kd_core.teachers import load as teachers
from kd_core.teachers.load import Teacher
from kd_core.teachers.logits import TeacherLogits
from kd_methods import StudentOutput, TeacherOutputs

CHECK_STEPS, WARM_UP_STEPS = 20, 3  # of --check: timed, and before


# ====================================================================================== what a run is made of


@dataclass(frozen=True)
class SecondViews:
    """Second views of the images: what is shown, to the student by `views`, and the teachers that see it."""

    images: Images
    views: Views
    teachers: TeacherLogits


@dataclass(frozen=True)
class Setup:
    """What trains in a run: made by `prepare`, then left alone (but `selected`, which `keep_selected` fills)."""

    config: Config
    job: Job
    network: Network  # the student
    features: WithFeatures | None  # the student's, with `kd.features`
    model: nn.Module  # what is trained, as Accelerate (and the compiler) wrapped it
    optimizer: Any
    method: kd_methods.KDMethod
    teachers: TeacherLogits
    predict: Predictor
    images: Images
    second: SecondViews | None  # with `augment.second`
    sampler: Sampler
    val: Images | None
    checked: TeacherCheck  # the teachers' logits and metrics on the validation split
    meter: Meter
    guard: NonFiniteSteps | None
    speed: Speed
    average: WeightAverage | None  # of the student's weights, with `training.ema`
    selected: dict[int, torch.Tensor]  # the epoch whose student is selected so far: its logits on validation images

    @property
    def device(self) -> torch.device:
        return self.job.accelerator.device

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.steps(self.config.part) // self.config.training.accumulate

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.training.max_epochs

    def learning_rate(self, step: int) -> float:
        """That of step `step` of the run; `layer_decay` of timm's optimizers lowers those of earlier layers."""
        return learning_rate_at(
            step,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            training=self.config.training,
        )

    def keep_selected(self, epoch: int, logits: torch.Tensor | None) -> None:
        """Keep what the best student so far, that of `epoch`, gave on validation images: `finish` need not run it."""
        self.selected.clear()
        if logits is not None:
            self.selected[epoch] = logits.cpu()  # so that they take no memory of a GPU while it trains


# ============================================================================================ the stages of a run


def run(
    config: Config,
    job: Job,
    *,
    members: list[Teacher],
    resume: str = "auto",
    alone: Path | None = None,
) -> dict[str, Any]:
    """Train one student as `config` says, with teachers `members`, and return its summary.

    `alone` is the run folder of the same student without teachers, to compare with.  All processes call this together.
    """
    job.reset_device()
    with ExitStack() as cleanup:
        folder = open_folder(config, job, resume, cleanup)
        if folder.finished:
            return already_finished(config, job, folder)
        setup = prepare(config, job, members)
        progress, checkpoints, tracker = restore(setup, folder, cleanup)
        began, first = time.perf_counter(), progress.epoch
        for row in epochs(setup, progress, checkpoints, tracker):
            left = (time.perf_counter() - began) / (progress.epoch - first) * (
                config.training.max_epochs - progress.epoch
            )
            job.say(report.epoch_line(row, config.training.max_epochs, left, progress.waited == 0))
        finish(setup, folder, progress, tracker, alone)
    return {**folder.summary(), "run_folder": str(folder.path)}


def already_finished(config: Config, job: Job, folder: RunFolder) -> dict[str, Any]:
    """The summary of a run that has finished before; what W&B lacks of it is sent."""
    again = "" if job.prescribed_run_id else " (--fresh trains again)"  # a sweep's trial has one run
    job.say(f"already finished: {folder.path}{again}")
    for note in report.unlike_now(config, folder.path, folder.summary(), job.accelerator.num_processes):
        job.say(note)
    if job.use_wandb and job.accelerator.is_main_process:
        send_rest(config, folder.path, job.say)
    return {**folder.summary(), "run_folder": str(folder.path)}


def prepare(config: Config, job: Job, members: list[Teacher], *, cached: bool = True) -> Setup:
    """Build student, method and optimizer; check the teachers and fill their caches (unless `cached` is false)."""
    accelerator, data, training = job.accelerator, job.data, config.training
    device, store = accelerator.device, config.data.store
    set_seed(training.seed)
    network = models.build_network(config, data)
    predict = Predictor(accelerator, config)
    predict.prepare(network.model)
    network.share_batch_norm(accelerator, training)
    average = WeightAverage(network.model, training.ema) if training.ema else None  # a copy, so before it is wrapped
    teachers = TeacherLogits(members, predict)
    images = Images.for_training(config, data, device)
    val = Images(data.val, device, store) if data.val else None
    checked = evaluation.check_teachers(members if cached else [], data, predict, job.say_once)
    errors = evaluation.errors_of(checked.logits, val.labels) if checked.logits is not None and val else None
    errors = errors if cached else torch.eye(len(members))  # of any teachers, where steps are only timed
    features, method = prepare_method(config, job, network, teachers, errors)
    second = prepare_second(config, job, network, teachers, images)
    if cached:
        teachers.open_caches(images, job.say)
        if second:
            second.teachers.open_caches(second.images, job.say)
    else:
        teachers.open_files(data.shown)
    optimizer = create_optimizer(network.model, training, device, method if features else None)
    trained: Any = models.StudentAndMethod(features, method) if features else network.model
    # Only these two are prepared: the schedule is a function of the step, and teachers are frozen.
    compiled = torch.compile(trained, mode=training.compile_mode) if training.compile else trained
    model, optimizer = accelerator.prepare(compiled, optimizer)
    buffers = [*network.model.buffers(), *method.copied_buffers()]
    if training.accumulate > 1:
        job.say(
            f"training.accumulate: each step takes {training.accumulate} parts of {config.part} images; BatchNorm, "
            "means over the batch and losses of a whole batch see one part"
        )
    return Setup(
        config=config,
        job=job,
        network=network,
        features=features,
        model=model,
        optimizer=optimizer,
        method=method,
        teachers=teachers,
        predict=predict,
        images=images,
        second=second,
        sampler=Sampler.of(config, data),
        val=val,
        checked=checked,
        meter=Meter(accelerator.reduce, accelerator.gather, training.skip_nonfinite),
        guard=NonFiniteSteps(optimizer.optimizer, buffers, method.take_back) if training.skip_nonfinite else None,
        speed=Speed(device),
        average=average,
        selected={},
    )


def prepare_method(
    config: Config, job: Job, network: Network, teachers: TeacherLogits, errors: torch.Tensor | None
) -> tuple[WithFeatures | None, kd_methods.KDMethod]:
    """The method on the device; with `kd.features`, the student whose forward gives them, too.

    errors [K,N]: of the teachers on validation images, for weightings that need them.
    """
    accelerator, layers = job.accelerator, models.layers_of(config.kd, len(teachers))
    features, shapes = None, []
    if layers:
        who = f"model.name {config.model.name!r}"
        features = WithFeatures(network.model, layers.student, network.preprocess.size, who, layers.student_head)
        shapes = [one.shapes for one in teachers.give_features(layers)]
    method = models.build_method(config, job.data, layers, features, shapes, errors).to(accelerator.device)
    if layers and method.feature_term:
        teachers.keep_for(method.feature_term, layers)
    models.share_over_processes(method, accelerator)
    return features, method


def prepare_second(
    config: Config, job: Job, network: Network, teachers: TeacherLogits, images: Images
) -> SecondViews | None:
    """What `augment.second` adds; None without it."""
    shown = images.second(config, job.data)
    if shown is None:
        return None
    return SecondViews(shown, network.views.without_crops(), teachers.of_second_views())


def restore(setup: Setup, folder: RunFolder, cleanup: ExitStack) -> tuple[Progress, Checkpoints, Tracker]:
    """Go on from the run's last checkpoint, or begin; open metrics.jsonl and the W&B run."""
    job, config, training, network = setup.job, setup.config, setup.config.training, setup.network
    checkpoints = Checkpoints(
        folder,
        job,
        training,
        network=network,
        optimizer=setup.optimizer,
        method=setup.method,
        meter=setup.meter,
        average=setup.average,
        keep_epochs=config.evaluation.test_epochs == "all",
    )
    found = checkpoints.load()
    progress = found or Progress(
        run_id=folder.summary()["run_id"], processes=job.accelerator.num_processes, log_every=training.log_every
    )
    if progress.log_every != training.log_every:  # rows are known by their numbers
        job.say(f"training.log_every: stays {progress.log_every} in this run, which began with it")
    steps_in = f" and {progress.position} steps" if progress.position else ""
    at = f"resuming {folder.path} after epoch {progress.epoch}{steps_in}"
    job.say(at if found else f"training in {folder.path}")
    tracker = start_tracking(
        config,
        folder,
        run_id=progress.run_id,
        enabled=job.accelerator.is_main_process,
        use_wandb=job.use_wandb,
        notify=job.say,
        group=configuration.group(config, job.data.fingerprint_of(config.data)),
        tags=[config.model.name],
        facts={
            **config.flat(job.data.num_classes),
            "parameters": network.parameters,
            "data_fingerprint": job.data.fingerprint,
            **configuration.code_digests(config.imports),
        },
        offset=progress.metrics_offset,
    )
    if tracker.url:
        job.say(f"W&B: {tracker.url}")

    def finish_tracking(kind: Any, error: BaseException | None, trace: Any) -> None:  # True would hide the error
        tracker.finish(error)

    cleanup.push(finish_tracking)
    tracker.record_data(job.data)
    for teacher in setup.teachers.members:
        if teacher.artifact:
            tracker.use_artifact(teacher.artifact)
    if setup.checked.metrics and not found:
        tracker.log({"epoch": 0, **setup.checked.rows})
    return progress, checkpoints, tracker


# ================================================================================================ the training loop


def epochs(
    setup: Setup, progress: Progress, checkpoints: Checkpoints, tracker: Tracker
) -> Iterator[dict[str, Any]]:
    """Train the epochs that are left.  Yields each one's row of metrics, once it is logged and its checkpoint written.

    A signal waits for the end of a step or of a checkpoint, then raises `Stopped`.
    """
    training, job = setup.config.training, setup.job
    log = StepLog(
        job.accelerator, setup.meter, tracker.log, every=progress.log_every, total_steps=setup.total_steps
    )
    with job.signals.deferred():
        while progress.epoch < training.max_epochs:
            if training.patience is not None and progress.waited >= training.patience:
                job.say(f"stopping: no better val/accuracy in {training.patience} epochs")
                return
            began = time.perf_counter() - progress.seconds  # those before a stop within the epoch
            try:
                means = train_epoch(setup, progress, checkpoints, tracker, log)
                seconds = time.perf_counter() - began
                job.share_buffers(setup.network.model)
                if setup.average:
                    job.share_buffers(setup.average.model)
                if setup.features:
                    job.share_buffers(setup.method)
                checkpoints.require_sound((progress.epoch + 1) * setup.steps_per_epoch)  # before it is logged or kept
                validation, logits = validate(setup, (progress.epoch + 1) / training.max_epochs)
            except NonFinite as error:
                raise explained(error, setup, checkpoints.folder) from None
            row = {
                "epoch": progress.epoch + 1,
                "learning_rate": setup.learning_rate((progress.epoch + 1) * setup.steps_per_epoch - 1),
                **{f"train/{name}": value for name, value in means.items()},
                **validation,
                **setup.speed.row(
                    seconds=seconds,
                    steps=setup.steps_per_epoch,
                    images=setup.steps_per_epoch * setup.config.data.batch_size,
                    hit_rate=hit_rate(setup),
                ),
                "perf/epoch_time": time.perf_counter() - began,
            }
            tracker.log(row)
            averaged, skipped = setup.average is not None, setup.meter.skipped
            better = progress.add_epoch(row, offset=tracker.offset, skipped=skipped, averaged=averaged)
            checkpoints.save_epoch(progress, better=better)
            if better:
                setup.keep_selected(progress.epoch, logits)
                tracker.store_best()
            job.stop_if_asked()
            yield row


def train_epoch(
    setup: Setup, progress: Progress, checkpoints: Checkpoints, tracker: Tracker, log: StepLog
) -> dict[str, float]:
    """The steps of the next epoch that are left; the means of its metrics."""
    epoch, steps = progress.epoch, setup.steps_per_epoch
    # Dropout and the like draw from generators that depend on (seed, epoch, process) alone.
    set_seed(epoch_seed(setup.config.training.seed, epoch, setup.job.accelerator.process_index))
    plan = plan_epoch(setup, epoch)
    setup.model.train()
    setup.meter.start_epoch()
    done = checkpoints.continue_epoch(progress)
    for position in log.start_epoch(f"epoch {epoch + 1}/{setup.config.training.max_epochs}", done, steps):
        train_step(setup, plan, position, epoch * steps + position)
        step = epoch * steps + position + 1
        logged = log.after(step, setup.learning_rate(step - 1))
        checkpoints.after_step(progress, step, steps_per_epoch=steps, logged=logged, offset=tracker.offset)
    return setup.meter.epoch()


def plan_epoch(setup: Setup, epoch: int) -> EpochPlan:
    """The order and the views of an epoch's images, for this process."""
    config, accelerator = setup.config, setup.job.accelerator
    plan_of = partial(
        EpochPlan,
        setup.sampler,
        setup.device,
        seed=config.training.seed,
        epoch=epoch,
        batch_size=config.part,  # so of each step as many as it has parts, one after another
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        fixed=config.cache.views if config.cache.mode == "fixed" and len(setup.teachers) else None,
    )
    plan = plan_of(augmentation=augmentation_of(config, setup.images.recipe))
    if setup.method.requires_teachers:
        setup.teachers.begin_epoch(plan)
    if setup.second:
        plan.second = plan_of(augmentation=augmentation_of(config, setup.second.images.recipe))
        if setup.method.requires_teachers:
            setup.second.teachers.begin_epoch(plan.second)
    return plan


def train_step(setup: Setup, plan: EpochPlan, position: int, step: int) -> None:
    """Make step `position` of the epoch's plan, `step` of the run.  Nothing here waits for the device."""
    accelerator, training = setup.job.accelerator, setup.config.training
    set_learning_rate(setup.optimizer, setup.learning_rate(step))
    if setup.guard:
        setup.guard.begin()

    parts, found = training.accumulate, list[dict[str, torch.Tensor]]()
    for part in range(parts):
        # Processes add up their gradients once, after the last part.
        with accelerator.no_sync(setup.model) if part + 1 < parts else nullcontext():
            metrics = measures(setup, plan, position * parts + part, step / setup.total_steps)
            accelerator.backward(metrics["loss_total"] / parts if parts > 1 else metrics["loss_total"])
        found.append({name: value.detach() for name, value in metrics.items()})
    metrics = found[0] if parts == 1 else {name: torch.stack([one[name] for one in found]).mean(0) for name in found[0]}
    if training.clip is not None or setup.guard:
        norm = accelerator.clip_grad_norm_(setup.model.parameters(), training.clip or math.inf)
        if accelerator.scaler is None:  # else it is infinite where the loss scale is too large
            metrics["gradient_norm"] = norm
    skipped = setup.guard.skip(norm) if setup.guard else None
    setup.meter.add(step, metrics, skipped)
    missed = take_step(setup.optimizer, accelerator.scaler)
    setup.optimizer.zero_grad()
    if setup.average:
        setup.average.update(step, skipped if setup.guard else missed)


def measures(setup: Setup, plan: EpochPlan, place: int, progress: float) -> dict[str, torch.Tensor]:
    """loss_total, with its gradient, and the other measures of the images at `place` of the epoch's plan."""
    training, method = setup.config.training, setup.method
    with setup.speed.data.running():
        pixels, labels = setup.images.show(plan, place)
        ids = plan.batch(place, setup.device).ids
        inputs = setup.network.views.train(pixels.shown, ids, channels_last=training.channels_last)
        if setup.second and plan.second:
            strong, _ = setup.second.images.show(plan.second, place)
            seconds = setup.second.views.train(strong.shown, ids, channels_last=training.channels_last)
    more: dict[str, Any] = {}
    with setup.speed.teachers.running():
        teachers = TeacherOutputs()
        if method.requires_teachers:
            teachers = setup.teachers.outputs(plan, place, pixels)
            if setup.second and plan.second:
                teachers = teachers._replace(second=setup.second.teachers(plan.second, place, strong))
    student = student_outputs(setup, inputs, seconds if setup.second else None)
    if setup.features:
        more["rows"] = setup.images.places(plan.batch(place, setup.device).rows)
    loss, metrics = method(student, teachers, labels, progress=progress, **more)
    classes = labels if labels.ndim == 1 else labels.argmax(1)  # of mixed images the class with the larger share
    accuracy = (student.logits.argmax(1) == classes).float().mean()
    labeled = setup.sampler.labeled_in(setup.config.part)
    if labeled == 0:
        return {"loss_total": loss, **metrics}
    if labeled < setup.config.part:  # of those with labels; the others, of label -1, are never right
        accuracy = accuracy * (setup.config.part / labeled)
    return {"loss_total": loss, "accuracy": accuracy, **metrics}


def student_outputs(setup: Setup, inputs: torch.Tensor, seconds: torch.Tensor | None) -> StudentOutput:
    """What the student gives for views [B,3,h,w], and its logits for their second views, in one pass or in two."""
    joined = seconds is not None and setup.config.augment.passes == 1
    found = setup.model(torch.cat([inputs, seconds]) if seconds is not None and joined else inputs)
    logits, maps = found if setup.features else (found, None)
    second = None
    if joined:
        logits, second = logits.chunk(2)
        maps = maps and tuple(values.chunk(2)[0] for values in maps)
    elif seconds is not None:
        other = setup.model(seconds)
        second = other[0] if setup.features else other
    return StudentOutput(logits, maps, setup.features.classifier if setup.features else None, second)


def validate(setup: Setup, progress: float) -> tuple[dict[str, float], torch.Tensor | None]:
    """val/* of the student as it is, val/ema_* of its average, and logits [n,C] of the one that would be exported.

    Nothing without a validation split.  `progress` is the share of training done.
    """
    if setup.val is None:
        return {}, None
    images, batch_size = setup.val, setup.config.part

    def scores(model: nn.Module) -> tuple[dict[str, float], torch.Tensor]:
        logits = setup.predict(model, images, setup.network.views)
        row = models.score(
            setup.method, logits, setup.checked.logits, images.labels, batch_size=batch_size, progress=progress
        )
        return {f"val/{name}": value for name, value in row.items()}, logits

    row, logits = scores(setup.network.model)
    if setup.average:
        own, averages = scores(setup.average.model)
        row |= {average: own[name] for name, average in AVERAGED.items()}
        logits = averages if takes_average(row) else logits
    return row, logits


def hit_rate(setup: Setup) -> float:
    """The share of the teachers' logits of an epoch that were read; waits until the computed ones are written."""
    rates = [one.hit_rate() for one in (setup.teachers, setup.second and setup.second.teachers) if one]
    return sum(rates) / len(rates) if rates else 0.0


def explained(error: NonFinite, setup: Setup, folder: RunFolder) -> NonFinite:
    """The same error with its usual causes, and with the checkpoint that is left."""
    latest = folder.checkpoint("latest")
    kept = f"Last good checkpoint: {latest}" if latest.is_dir() else "No epoch was complete"
    seen = [setup.teachers, *([setup.second.teachers] if setup.second else [])]
    causes = "; ".join(filter(None, [one.describe_nonfinite() for one in seen])) or (
        f"usual causes: a learning rate that is too high (training.learning_rate is "
        f"{setup.config.training.learning_rate:g}), fp16 without training.clip"
    )
    return NonFinite(f"{error}; {causes}. {kept}")


# ===================================================================================================== the end


def finish(setup: Setup, folder: RunFolder, progress: Progress, tracker: Tracker, alone: Path | None) -> None:
    """Evaluate the selected student; write its export, summary and report, and send what W&B lacks."""
    job, config, network = setup.job, setup.config, setup.network
    accelerator, inspected = job.accelerator, job.is_student and config.evaluation.report
    members = setup.teachers.members
    accelerator.wait_for_everyone()
    best = folder.checkpoint("best") / "student"
    network.load_weights(best)
    observe = evaluation.observer(setup.predict, job.data, network, setup.teachers, setup.method, alone)
    epochs = folder.kept_epochs() if config.evaluation.test_epochs else {}
    val = setup.selected.get(progress.best["epoch"])
    seen, test, test_epochs = evaluation.observe_splits(observe, val, setup.checked.logits, epochs, job.say)
    if test:
        tracker.log({"epoch": progress.epoch, **test})
    for row in test_epochs:
        tracker.log(row)
    sample = evaluation.sample(observe, job.say) if inspected else None
    if accelerator.is_main_process:
        evaluations = {name: evaluation.evaluate(found, seen.get("val")) for name, found in seen.items()}
        summary = report.summarize(
            config, job.data, network, members, setup.checked.metrics, asdict(progress), test, evaluations
        )
        summary |= {**report.over_test_epochs(test_epochs), "baseline_run": str(alone) if alone else None}
        folder.keep_student(best)
        if inspected:
            rows, steps = read_metrics(folder.metrics_file), setup.steps_per_epoch
            summary |= report.inspect(config, network, folder, rows, seen.get("val"), sample, steps, accelerator)
        with folder.writing():
            if not members:
                evaluation.keep_logits(folder.path, best, setup.predict, seen)
            summary = folder.write_summary(**summary)
            if inspected:
                report.write_page(config, folder, summary, rows, evaluations, seen)
            summary = folder.write_summary(status="finished", exit_status=0)  # last: a stop before it repeats all this
        tracker.record_results(summary, setup.checked.rows)
    accelerator.wait_for_everyone()


def time_run(config: Config, job: Job, members: list[Teacher]) -> dict[str, Any]:
    """What `report.cost` needs to know of a run: its seconds per step, over CHECK_STEPS real ones.  Nothing is kept."""
    job.reset_device()
    setup = prepare(config, job, members, cached=False)
    setup.model.train()
    plan = plan_epoch(setup, 0)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for number in range(count):
            position = number % setup.steps_per_epoch
            train_step(setup, plan, position, position)
        setup.job.wait_for_device()
        return (time.perf_counter() - began) / count

    steps(WARM_UP_STEPS)
    described: list[Any] = [setup.features, *setup.teachers.facts] if setup.features else []
    return {
        "parameters": setup.network.parameters,
        "features": [
            f"{one.who}, layer {layer}: {' x '.join(map(str, shape))}"
            for one in described
            for layer, shape in zip(one.layers, one.shapes, strict=True)
        ],
        "cache": setup.teachers.cache_in_words(setup.images),
        "loss": setup.method.describe(len(setup.teachers)),
        "steps_per_epoch": setup.steps_per_epoch,
        "seconds": steps(CHECK_STEPS),
    }


# ======================================================================================================== main


def main(arguments: list[str]) -> None:
    """All of it: settings, data, teachers, the comparison, the student."""
    with handled_signals() as signals:
        options, resolved = parse(arguments)
        if options.print_config:
            return
        config, job = evaluation.start(options, resolved, signals)
        members = evaluation.check_everything(config, job, options.resume, look_for_remedies=options.check)
        if options.check:
            check(config, job, members, options.seeds)
        else:
            train(config, job, with_trained_teachers(config, job, members), options, arguments)
        job.accelerator.end_training()


def train(
    config: Config, job: Job, members: list[Teacher], options: command_line.Options, arguments: list[str]
) -> None:
    """Train the student with each seed, and compare the seeds if there are several."""
    folders: list[str] = []
    for number, seed in enumerate(options.seeds, 1):
        if len(options.seeds) > 1:
            job.say(f"seed {seed}, {number} of {len(options.seeds)}")
        own = configuration.with_seed(config, seed)
        folders += train_student(own, job, members, options.resume, arguments, bool(options.config))
    if len(options.seeds) > 1 and job.accelerator.is_main_process:
        from kd_core.comparison import tables  # plots and statistics take a second, which other runs need not wait

        job.say(f"\n{tables.of_folders(folders, config.imports)}")


def epochs_of(arguments: list[str]) -> Generator[dict[str, Any], None, None]:
    """The epochs of the student that a command trains, each when its row is asked for: for benchmarks and tests.

    Nothing comes after the last one.  Closing the generator, or throwing an error into it, ends the run with that
    error.  Seeds and the comparison without teachers are left out.
    """
    options, resolved = parse(arguments)
    config, job = evaluation.start(options, resolved)
    job.reset_device()
    members = evaluation.check_everything(config, job, options.resume, look_for_remedies=False)
    members = with_trained_teachers(config, job, members)
    with ExitStack() as cleanup:
        folder = open_folder(config, job, options.resume, cleanup)
        setup = prepare(config, job, members)
        yield from epochs(setup, *restore(setup, folder, cleanup))


def check(config: Config, job: Job, members: list[Teacher], seeds: list[int]) -> None:
    """--check: measure the teachers that are there, time some steps, and say what the run will take."""
    on_demand = [index for index, teacher in enumerate(config.teachers) if teacher.train]
    found = {index: path for index in on_demand if (path := teachers.find_teacher(config, index, job.data))}
    for index, path in found.items():
        members[index] = teachers.load(config.teachers[index], index, job.data, config, path)
    evaluation.check_members([members[index] for index in found], config, job, try_settings=True)
    cost = time_run(config, job, members)
    names, missing = [member.name for member in members], len(on_demand) - len(found)
    job.say(report.cost(config, job.data, job.accelerator, names, missing, **cost))
    if len(seeds) > 1:
        job.say(f"  seeds     {len(seeds)} such runs, one after another")


def train_student(
    config: Config, job: Job, members: list[Teacher], resume: str, arguments: list[str], has_config: bool
) -> list[str]:
    """Train the student, and before it the comparison without teachers if asked for; their run folders.

    `arguments` are the command line's words, for hints.
    """
    baseline = None
    if config.training.compare_with_baseline and members:
        job.say("the same student without teachers, for comparison")
        own = command_line.without_teachers(config).model_copy(update={"name": f"{config.experiment}-alone"})
        baseline = run(own, job.side_job(), members=[], resume="never" if resume == "never" else "auto")
    if members:
        job.say(f"the student with {len(members)} teacher(s)")
    alone = Path(baseline["run_folder"]) if baseline else None
    summary = run(config, job, members=members, resume=resume, alone=alone)

    for words in report.closing_words(config, summary, baseline, arguments=arguments, has_config=has_config):
        job.say(words)
    return [one["run_folder"] for one in (baseline, summary) if one is not None]


def with_trained_teachers(config: Config, job: Job, members: list[Teacher]) -> list[Teacher]:
    """The teachers, with those that are trained on demand trained and loaded."""
    return [
        teachers.load(teacher, index, job.data, config, ensure_teacher(config, index, job)) if teacher.train else member
        for index, (teacher, member) in enumerate(zip(config.teachers, members, strict=True))
    ]


def ensure_teacher(config: Config, index: int, job: Job) -> Path:
    """The run folder of on-demand teacher `index`, which is trained first if need be."""
    own = teachers.training_config(config, index)
    label = f"teacher {index} ({own.model.name})"
    with ExitStack() as cleanup:
        if job.accelerator.is_main_process:
            lock = teacher_lock(
                own,
                job.data.fingerprint_of(own.data),
                lambda owner: job.say(f"{label} is being trained by {owner}; waiting for it"),
            )
            cleanup.callback(lock.release)
        job.accelerator.wait_for_everyone()
        found = teachers.find_teacher(config, index, job.data)
        sought = f"no finished run in {config.output_dir} has its settings and these data, so it is trained first"
        job.say(f"{label}: found in {found}" if found else f"{label}: {sought}")
        path = found or Path(run(own, job.side_job(), members=[])["run_folder"])
        job.accelerator.wait_for_everyone()
    return path


if __name__ == "__main__":
    hint = command_line.to_go_on("train_kd.py", sys.argv[1:])
    run_script(main, "train_kd.py", after_stop=f"; {hint}")
