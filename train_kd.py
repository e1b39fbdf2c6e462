#!/usr/bin/env python
"""Distil an image classifier from several teachers.

    python train_kd.py                                    quickstart: digits, three teachers, two minutes
    python train_kd.py --config configs/cifar32/X.yaml    one of the shipped experiments
    accelerate launch train_kd.py --config X.yaml --kd.temperature=8      several GPUs
    python train_kd.py --config X.yaml --check            build all, time 20 steps, say what the run will cost
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
    --no-wandb            no Weights & Biases; metrics.jsonl in the run folder is written all the same
    --seeds 0,1,2         train the student (and the comparison) with each of these seeds, one after another, and print
                          mean and standard deviation; training.seed is left out
    --check               build everything, measure the teachers, try other settings for weak ones, time 20 real
                          steps, then exit
    --print-config        print the resolved settings as YAML, then exit
    --help                this text

exit status: 0 done, 2 a mistake in the settings or files (one clear message), 1 a failure of this program (its
             traceback, and what to report); stopped by a signal: 143 SIGTERM, 138 SIGUSR1, 130 Ctrl-C.  The step is
             finished (of several processes: up to ten steps) and a checkpoint written, from which the same command
             goes on.  A second signal stops at once
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads spin, which starves other processes

import gc
import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from timm.layers import convert_sync_batchnorm
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

import kd_core.zoo  # noqa: F401 - registers the cifar_ networks with timm
import kd_methods
from kd_core import config as configuration
from kd_core.config import Config, command_line, commands, own_code
from kd_core.data.dataset import Data, load_data
from kd_core.data.views import EpochPlan, epoch_order, random_bits
from kd_core.errors import NonFinite, UserError, printable
from kd_core.evaluation import teacher_check as trials
from kd_core.evaluation.cost import measure as measure_cost
from kd_core.evaluation.diagnosis import Finding, diagnose
from kd_core.evaluation.figures import Predictions, evaluate
from kd_core.evaluation.predictions import SAMPLE, Observer, Pupil, load_pupil
from kd_core.files import check_writable, copy_folder, held_lock, writable_folder
from kd_core.loop import launcher
from kd_core.loop.meter import Meter, require_finite, require_scale
from kd_core.loop.optimizer import NonFiniteSteps, create_optimizer, learning_rate_at, set_learning_rate
from kd_core.loop.processes import (
    create_accelerator,
    is_first_process,
    random_state,
    set_random_state,
    share_buffers,
    shares_batch_norm,
)
from kd_core.loop.signals import Stopped, StopSignals
from kd_core.loop.timing import Stopwatch, clock, peak_device_memory_mb, wait_for
from kd_core.models import build as models
from kd_core.models import interface
from kd_core.models import network as student
from kd_core.models.predict import Images, Predictor, score
from kd_core.report import console as report
from kd_core.run.folder import (
    RunFolder,
    find_or_create,
    load_latest,
    open_run,
    read_metrics,
    save_latest,
)
from kd_core.run.script import run_script
from kd_core.run.tracking import environment, prepare, send_rest, start_tracking, wandb_mode
from kd_core.teachers import dry_run
from kd_core.teachers import load as teachers
from kd_core.teachers.logits import Panel, teacher_rows
from kd_methods import StudentOutput, TeacherOutputs

CHECK_STEPS = 20  # timed by --check
STEPS_TOGETHER = 10  # after which several processes agree whether to stop or to save


@dataclass
class Job:
    """What all runs of one process share."""

    accelerator: Accelerator
    data: Data
    use_wandb: bool
    signals: StopSignals
    is_student: bool = True  # else a teacher or the comparison: a sweep's trial is the student's run alone

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(printable(text))

    def reset_device(self) -> None:
        """Let go of what an earlier run of this process left behind."""
        gc.collect()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled():
            fresh = torch.amp.GradScaler(self.accelerator.device.type)
            self.accelerator.scaler.load_state_dict(fresh.state_dict())

    def side_job(self) -> "Job":
        """For teachers and for the comparison, which are no trials of their own."""
        return replace(self, use_wandb=self.use_wandb and not configuration.in_trial(), is_student=False)


# ============================================================================================== one training run


def run(
    config: Config,
    job: Job,
    *,
    members: list[teachers.Teacher],
    resume: str = "auto",
    alone: Path | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """Train one student as `config` says, with teachers `members`, and return its summary.

    `alone` is the run folder of the same student without teachers, to compare with.  With `check` only some steps are
    timed.  All processes call this together.
    """
    accelerator, data, say, training = job.accelerator, job.data, job.say, config.training
    device = accelerator.device
    job.reset_device()

    with ExitStack() as cleanup:
        # --------------------------------------------------------------------------------------- run folder
        if not check:
            folder, run_id = choose_folder(config, job, resume, cleanup)
            if folder.finished:
                say(f"already finished: {folder.path} (--fresh trains anew)")
                if job.use_wandb and accelerator.is_main_process:
                    send_rest(config, folder.path, say)
                return {**folder.summary(), "run_folder": str(folder.path)}
            if accelerator.is_main_process:
                cleanup.push(lambda kind, error, trace: folder.record_failure(error))

        # ----------------------------------------------------------------------- student, teachers, method
        set_seed(training.seed)
        pupil = student.build(config, data)
        predict = Predictor(accelerator, config)
        predict.prepare(pupil.model)
        panel = Panel(members, predict)
        method = kd_methods.build(config.kd, num_classes=data.num_classes, label_smoothing=training.label_smoothing).to(
            device
        )
        if accelerator.num_processes > 1:
            method.reduce_mean = lambda values: accelerator.reduce(values, "mean")

        # ---------------------------------------------------------------- images, and how good the teachers are
        images = Images(data.train, device, config.data.store)
        val = Images(data.val, device, config.data.store) if data.val else None
        val_teachers, measured = judge(panel, config, job) if not check else (None, [])
        if check:
            panel.open_files(data.train)
        else:
            panel.open_caches(images, say)

        # ------------------------------------------------------------------------------ optimizer and schedule
        if shares_batch_norm(accelerator, training.sync_bn):
            pupil.model = convert_sync_batchnorm(pupil.model)  # timm's: PyTorch's drops fused activations
        optimizer = create_optimizer(pupil.model, training, device)
        steps_per_epoch = len(images) // config.data.batch_size
        total_steps = steps_per_epoch * training.max_epochs
        # Only these two are prepared: the schedule is a function of the step, and teachers are frozen.
        compiled = torch.compile(pupil.model, mode=training.compile_mode) if training.compile else pupil.model
        model, optimizer = accelerator.prepare(compiled, optimizer)

        # ------------------------------------------------------------------------------------------ one step
        meter = Meter(accelerator.reduce, accelerator.gather, training.skip_nonfinite)
        buffers = [*pupil.model.buffers(), *method.buffers()]
        guard = NonFiniteSteps(optimizer.optimizer, buffers) if training.skip_nonfinite else None
        data_watch, teacher_watch = Stopwatch(device), Stopwatch(device)

        def plan_epoch(epoch: int) -> EpochPlan:
            plan = EpochPlan(
                data.train.rows,
                device,
                seed=training.seed,
                epoch=epoch,
                batch_size=config.data.batch_size,
                rank=accelerator.process_index,
                world_size=accelerator.num_processes,
                crop_padding=config.data.crop_padding,
                flip=config.data.flip,
                fixed=config.cache.views if config.cache.mode == "fixed" and len(panel) else None,
            )
            if method.requires_teachers:
                panel.begin_epoch(plan)
            return plan

        def train_step(epoch: int, plan: EpochPlan, position: int) -> None:
            step = epoch * steps_per_epoch + position
            rate = learning_rate_at(step, total_steps=total_steps, steps_per_epoch=steps_per_epoch, training=training)
            set_learning_rate(optimizer, rate)
            if guard:
                guard.begin()
            with data_watch.running():
                pixels, labels = images.store.gather(plan.batch(position, images.store.index_device).rows)
                inputs = pupil.views.train(
                    pixels, plan.batch(position, device).ids, channels_last=training.channels_last
                )
            with teacher_watch.running():
                taught = TeacherOutputs(panel(plan, position, pixels) if method.requires_teachers else None)
            output = StudentOutput(model(inputs))
            loss, measures = method(output, taught, labels, progress=step / total_steps)
            accuracy = (output.logits.argmax(1) == labels).float().mean()
            measures = {"loss_total": loss, "accuracy": accuracy, **measures}
            accelerator.backward(loss)
            if training.clip is not None or guard:
                norm = accelerator.clip_grad_norm_(model.parameters(), training.clip or math.inf)
                if accelerator.scaler is None:  # else it is infinite where the loss scale is too large
                    measures["gradient_norm"] = norm
            meter.add(step, measures, guard.skip(norm) if guard else None)
            optimizer.step()
            optimizer.zero_grad()

        if check:
            model.train()
            plan = plan_epoch(0)
            seconds = time_steps(lambda position: train_step(0, plan, position), steps_per_epoch, device)
            return {
                "parameters": pupil.parameters,
                "loss": method.describe(len(panel)),
                "steps_per_epoch": steps_per_epoch,
                "seconds": seconds,
            }

        # ------------------------------------------------------------------------------------- where it stood
        state: dict[str, Any] = {
            "epoch": 0, "position": 0, "waited": 0, "metrics": {}, "best": {}, "metrics_offset": 0, "run_id": run_id,
            "processes": accelerator.num_processes, "log_every": training.log_every, "skipped_steps": 0,
        }  # fmt: skip
        found, within = load_latest(folder, say), None
        if found:
            path, tensors, state = found
            if state["processes"] != accelerator.num_processes:
                raise UserError(
                    f"{folder.path}: was trained by {state['processes']} process(es), this is "
                    f"{accelerator.num_processes}: not the same run. Start as many as before, or give --fresh"
                )
            ended = state["epoch"] > 0 and state["position"] == 0
            if accelerator.is_main_process and ended and state["best"]["epoch"] == state["epoch"]:
                folder.keep_best(path / "student")  # in case the last attempt ended between the two
            pupil.model.load_state_dict(models.load_export(path / "student").model.state_dict())
            optimizer.load_state_dict(tensors["optimizer"])
            method.load_state_dict(tensors["method"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(tensors["scaler"])
            within = tensors["within_epoch"]
        meter.skipped_before = state.get("skipped_steps", 0)
        log_every = state["log_every"]
        if log_every != training.log_every:  # rows are known by their numbers
            say(f"training.log_every: stays {log_every} in this run, which began with it")
        steps_in = f" and {state['position']} steps" if state["position"] else ""
        say(f"resuming {folder.path} after epoch {state['epoch']}{steps_in}" if found else f"training in {folder.path}")
        tracker = start_tracking(
            config,
            folder,
            run_id=run_id,
            enabled=accelerator.is_main_process,
            use_wandb=job.use_wandb,
            notify=say,
            group=configuration.group(config, data.fingerprint),
            tags=[config.model.name],
            facts={
                **config.flat(data.num_classes),
                "parameters": pupil.parameters,
                "data_fingerprint": data.fingerprint,
                **own_code_facts(config),
            },
            offset=state["metrics_offset"],
        )
        if tracker.url:
            say(f"W&B: {tracker.url}")

        def finish_tracking(kind: Any, error: BaseException | None, trace: Any) -> None:  # True would hide the error
            tracker.finish(error)

        cleanup.push(finish_tracking)
        tracker.record_data(data)
        for teacher in panel.members:
            if teacher.artifact:
                tracker.use_artifact(teacher.artifact)
        if measured and not found:
            tracker.log({"epoch": 0, **teacher_rows(measured)})

        def validate(progress: float) -> dict[str, float]:
            if val is None:
                return {}
            logits, batch_size = predict(pupil.model, val, pupil.views), config.data.batch_size
            row = score(method, logits, val_teachers, val.labels, batch_size=batch_size, progress=progress)
            return {f"val/{name}": value for name, value in row.items()}

        def require_sound(step: int) -> None:
            """NonFinite unless all that a checkpoint holds after `step` steps of the run is finite."""
            require_finite(pupil.model, optimizer, f"after step {step}", accelerator.reduce)

        saved_at = time.monotonic()

        def keep(better: bool, within_epoch: list[dict[str, Any]] | None = None) -> None:
            """Write the checkpoints: latest always, best if it is one; `within_epoch` is each process's state there."""
            nonlocal saved_at
            saved_at = time.monotonic()
            if not accelerator.is_main_process:
                return
            tensors = {
                "optimizer": optimizer.state_dict(),
                "method": method.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "within_epoch": within_epoch,
            }
            with folder.writing():
                save_latest(folder, lambda path: pupil.export(path, state["metrics"]), tensors, state)
                if better:
                    folder.keep_best(folder.checkpoint("latest") / "student")
            if better:
                tracker.store_best()

        def keep_position(position: int) -> None:
            """A checkpoint after `position` steps of an epoch.  What is each process's own is gathered."""
            meter.epoch()  # NonFinite before anything is written
            require_sound(state["epoch"] * steps_per_epoch + position)
            own = {
                "buffers": {name: buffer.cpu() for name, buffer in pupil.model.named_buffers()},
                "random": random_state(device),
                "meter": meter.state(),
            }
            state.update(position=position, metrics_offset=tracker.offset)
            keep(better=False, within_epoch=gather_object([own]))

        def continue_epoch() -> int:
            """Restore what `keep_position` kept for this process; the number of steps that are done."""
            if within:
                own = within[accelerator.process_index]
                for name, buffer in pupil.model.named_buffers():
                    buffer.copy_(own["buffers"][name])
                set_random_state(own["random"], device)
                meter.load_state(own["meter"], device)
            return state["position"]

        def save_is_due(step: int) -> bool:
            every, minutes = training.save_every_steps, training.save_every_minutes
            return bool(every and step % every == 0) or bool(minutes and time.monotonic() - saved_at > 60 * minutes)

        # --------------------------------------------------------------------------------------- the epochs
        began, first_epoch = time.perf_counter(), state["epoch"]
        with job.signals.deferred():  # a signal waits for the end of a step or of a checkpoint
            for epoch in range(first_epoch, training.max_epochs):
                if training.patience is not None and state["waited"] >= training.patience:
                    say(f"stopping: no better val/accuracy in {training.patience} epochs")
                    break
                epoch_began = time.perf_counter()
                # Dropout and the like draw from generators that depend on (seed, epoch, process) alone.
                own = torch.tensor([accelerator.process_index])
                set_seed(int(random_bits(training.seed, -1 - epoch, own)) % 2**32)
                plan = plan_epoch(epoch)
                model.train()
                meter.start_epoch()
                done = continue_epoch()
                state["position"], within = 0, None
                interval_began, interval_steps = epoch_began, 0
                title, hidden = f"epoch {epoch + 1}/{training.max_epochs}", not accelerator.is_main_process
                bar = tqdm(
                    range(done, steps_per_epoch), title, steps_per_epoch, False, initial=done, disable=hidden or None
                )
                try:
                    for position in bar:
                        train_step(epoch, plan, position)
                        step, interval_steps = epoch * steps_per_epoch + position + 1, interval_steps + 1
                        log_now, due = step % log_every == 0, save_is_due(step)
                        if log_now:
                            means = meter.reading()  # waits for the device, and nothing else within an epoch does
                            require_scale(accelerator.scaler)
                            now, rate = time.perf_counter(), optimizer.param_groups[0]["lr"]
                            step_time = (now - interval_began) / interval_steps
                            interval_began, interval_steps = now, 0
                            tracker.log(
                                {
                                    "train_step/step": step,
                                    "train_step/learning_rate": rate,
                                    "train_step/step_time": step_time,
                                    **{f"train_step/{name}": value for name, value in means.items()},
                                }
                            )
                            bar.set_postfix(
                                loss=f"{means.get('loss_total', math.nan):.3f}",
                                acc=f"{means.get('accuracy', math.nan):.1%}",
                                lr=f"{rate:.2g}",
                                left=clock((total_steps - step) * step_time),
                                refresh=False,
                            )
                        every = training.save_every_steps or STEPS_TOGETHER
                        together = log_now or step % STEPS_TOGETHER == 0 or step % every == 0
                        stop, save = job.signals.agreed(accelerator, together=together, due=due)
                        if stop or save:
                            keep_position(position + 1)
                            state["position"] = 0
                        if stop:
                            raise Stopped(stop)
                    means = meter.epoch()
                    seconds = time.perf_counter() - epoch_began
                    share_buffers(pupil.model, accelerator)
                    require_sound((epoch + 1) * steps_per_epoch)  # before it is judged, logged or kept
                    validation = validate((epoch + 1) / training.max_epochs)
                except NonFinite as error:
                    latest = folder.checkpoint("latest")
                    kept = f"Last good checkpoint: {latest}" if latest.is_dir() else "No epoch was complete"
                    causes = panel.culprits() or (
                        f"usual causes: a learning rate that is too high (training.learning_rate is "
                        f"{training.learning_rate:g}), fp16 without training.clip"
                    )
                    raise NonFinite(f"{error}; {causes}. {kept}") from None
                row: dict[str, Any] = {
                    "epoch": epoch + 1,
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    **{f"train/{name}": value for name, value in means.items()},
                    **validation,
                    "train/step_time": seconds / steps_per_epoch,
                    "perf/data_time": data_watch.read(),
                    "perf/teacher_time": teacher_watch.read(),
                    "perf/teacher_cache_hit_rate": panel.hit_rate(),
                    "perf/images_per_second": steps_per_epoch * config.data.batch_size / seconds,
                    "perf/gpu_memory_peak_mb": peak_device_memory_mb(device),
                    "perf/epoch_time": time.perf_counter() - epoch_began,
                }
                tracker.log(row)
                # Without a validation split every epoch is the best so far: the last one is the result.
                better = val is None or row["val/accuracy"] > state["best"].get("val/accuracy", -1.0)
                state.update(epoch=epoch + 1, metrics=row, metrics_offset=tracker.offset, skipped_steps=meter.skipped)
                state.update({"best": row, "waited": 0} if better else {"waited": state["waited"] + 1})
                keep(better)
                stop, _ = job.signals.agreed(accelerator, together=True)
                if stop:
                    raise Stopped(stop)
                left = (time.perf_counter() - began) / (epoch + 1 - first_epoch) * (training.max_epochs - epoch - 1)
                say(report.epoch_line(row, training.max_epochs, left, better))

        # ------------------------------------------------------------------------------------------ the end
        accelerator.wait_for_everyone()
        best = folder.checkpoint("best") / "student"
        pupil.model.load_state_dict(models.load_export(best).model.state_dict())
        observe = Observer(predict, data, Pupil(pupil.model, pupil.views), panel, method)
        if alone:
            observe.alone = load_pupil(alone, config, data, predict, "the student alone")
        seen = {"val": observe("val", data.val, taught=val_teachers)} if data.val else {}
        test: dict[str, float] = {}
        if config.evaluation.test_at_end and (opened := open_test_split(job, observe)):
            seen["test"], test = opened
            tracker.log({"epoch": state["epoch"], **test})
        evaluations = {name: evaluate(found, seen.get("val")) for name, found in seen.items()}
        summary = report.summarize(config, data, pupil, panel.members, measured, state, test, evaluations)
        summary["baseline_run"] = str(alone) if alone else None
        inspected = job.is_student and config.evaluation.report
        sample = look_at_training_images(observe, job) if inspected else None
        if accelerator.is_main_process:
            with folder.writing():
                copy_folder(best, folder.student)
            if inspected:
                # It draws with matplotlib, whose import takes long where nothing is drawn.
                from kd_core.report.run_page import write_report

                rows = read_metrics(folder.metrics_file)
                findings = diagnose(
                    config,
                    rows=rows,
                    train=sample,
                    val=seen.get("val"),
                    steps_per_epoch=steps_per_epoch,
                    processes=accelerator.num_processes,
                    batch_norm=any(isinstance(module, _BatchNorm) for module in pupil.model.modules()),
                )
                summary["environment"] = environment()
                summary["findings"] = [asdict(finding) for finding in findings]
                summary["cost"] = measure_cost(
                    pupil.model,
                    pupil.preprocess.size,
                    device,
                    checkpoint=folder.student,
                    precision=accelerator.mixed_precision,
                    channels_last=training.channels_last,
                )
            with folder.writing():
                summary = folder.write_summary(**summary, status="finished", exit_status=0)
                if inspected:
                    write_report(
                        folder.path,
                        summary=summary,
                        settings=config.to_yaml(),
                        environment=summary["environment"],
                        rows=rows,
                        evaluations=evaluations,
                        predictions=seen.get("test", seen.get("val")),
                    )
        tracker.record_report(folder.path / "report")
        tracker.summarize({name: summary[name] for name in report.HEADLINES} | teacher_rows(measured))
        tracker.store_final()
        accelerator.wait_for_everyone()
        accelerator.free_memory()
    return {**folder.summary(), "run_folder": str(folder.path)}


# ================================================================================================ parts of a run


def choose_folder(config: Config, job: Job, resume: str, cleanup: ExitStack) -> tuple[RunFolder, str]:
    """The run folder to continue, or a new one, and its run id; the main process decides for all, and locks it."""
    choice: list[Any] = [None, None, None]
    folder = None
    if job.accelerator.is_main_process:
        prescribed = configuration.prescribed_run_id() if job.is_student else None
        try:
            folder = find_or_create(config, job.data.fingerprint, resume, prescribed)
            if not folder.finished:
                # a comparison that another run trains already is waited for
                cleanup.callback(folder.lock(None if job.is_student else job.say).release)
                if not folder.finished:  # by the one that was waited for
                    with folder.writing():
                        folder.write_summary(status="running", exit_status=None)
            choice = [str(folder.path), folder.summary()["run_id"], None]
        except UserError as error:
            choice[2] = str(error)
    broadcast_object_list(choice)
    if choice[2]:
        raise UserError(choice[2])
    return folder or RunFolder(Path(choice[0])), choice[1]


def own_code_facts(config: Config) -> dict[str, Any]:
    """What W&B is told of a run's own code: names and digests, not the code."""
    files = [own_code.file(path) for path in config.imports]
    return {"own_code": {file.path.name: file.digest for file in files}} if files else {}


def judge(
    panel: Panel, config: Config, job: Job, *, check: bool = False
) -> tuple[Tensor | None, list[dict[str, float]]]:
    """The teachers' clean-view logits [K,n,C] on the validation split, and metrics of each and of their ensemble.

    Without a validation split they are judged on some training images, and nothing is returned.  With `check` other
    settings are tried for weak ones.  UserError for a teacher near chance or with logits that are not finite.
    """
    if not len(panel):
        return None, []
    split, name = job.data.val, "validation images"
    if split is None:
        some = epoch_order(0, 0, job.data.train.rows)[:SAMPLE]
        split, name = replace(job.data.train, rows=some), f"{len(some)} training images"
    images = Images(split, job.accelerator.device, config.data.store)
    logits = panel.judge(images)
    assert logits is not None
    measured = panel.measure(logits, images.labels)
    for remark in panel.remarks(measured, name):
        job.say(f"  {remark}")
    better = None
    if check:
        predict = Predictor(job.accelerator, config)
        better = trials.other_settings(panel.members, measured, logits, images, config, job.data, predict)
    panel.require_able(measured, images.labels, better)
    if better:
        job.say(report.findings_lines(list(better.values())))
    return (logits, measured) if job.data.val is not None else (None, [])


def time_steps(step: Callable[[int], None], steps_per_epoch: int, device: torch.device) -> float:
    """Seconds a step, over CHECK_STEPS real ones after three to warm up."""
    for position in range(3):
        step(position % steps_per_epoch)
    wait_for(device)
    began = time.perf_counter()
    for position in range(CHECK_STEPS):
        step(position % steps_per_epoch)
    wait_for(device)
    return (time.perf_counter() - began) / CHECK_STEPS


def look_at_training_images(observe: Observer, job: Job) -> Predictions | None:
    """What the networks say about some of them; None, and a line that says why, if a teacher is gone by now."""
    try:
        return observe.sample()
    except UserError as error:  # a finished run is not lost for what only its report would tell
        job.say(f"teachers are not looked at on training images: {error}")
        return None


def open_test_split(job: Job, observe: Observer) -> tuple[Predictions, dict[str, float]] | None:
    """What the selected student and its teachers say about the test split, and test/*; None where there is none.

    The one place where training's code reads the test split, after selection.
    """
    split = job.data.test()
    if split is None:
        job.say("evaluation.test_at_end: the data have no test split, nothing was tested (data.test_size cuts one)")
        return None
    found, device = observe("test", split), job.accelerator.device
    taught = None if found.teachers is None else found.teachers.to(device)
    batch_size = observe.predict.config.data.batch_size
    logits, labels = found.student.to(device), found.labels.to(device)
    row = score(observe.method, logits, taught, labels, batch_size=batch_size, progress=1.0)
    job.say(f"test accuracy {row['accuracy']:.2%} on {len(labels)} images")
    return found, {f"test/{name}": value for name, value in row.items()}


# ======================================================================================================== main


def main(arguments: list[str]) -> None:
    signals = StopSignals()
    with signals.installed():
        train(arguments, signals)


def train(arguments: list[str], signals: StopSignals) -> None:
    """All of it: settings, data, teachers, the comparison, the student."""
    # ----------------------------------------------------------------------------------------- configuration
    options, resolved = command_line.parse(arguments, __doc__ or "")
    config = resolved.config
    if options.print_config:
        precision = launcher.precision(config.training.mixed_precision, os.environ)
        print(configuration.with_precision(config, precision).to_yaml(), end="")
        return
    check_writable(Path(config.output_dir), "output_dir")
    if not options.no_wandb:
        wandb_mode(config)  # a mode that does not exist is a mistake, not a failure of W&B
        if is_first_process():
            prepare(config)
    training = config.training
    accelerator = create_accelerator(training.mixed_precision, deterministic=training.deterministic)
    config = configuration.with_precision(config, accelerator.mixed_precision)
    if is_first_process():
        if not options.config:
            print("no --config: running the quickstart, configs/quickstart.yaml")
        for notice in resolved.notices:
            print(notice)
        if note := models.renamed_note(config.model.name, "model.name"):
            print(note)

    # -------------------------------------------------------------------------------------------------- data
    wanted = config.model
    sizes = [models.input_size(wanted.name, wanted.img_size, wanted.stem, "model.name")]
    sizes += teachers.input_sizes(config)
    with accelerator.local_main_process_first():  # on each machine one decodes, the others find the result
        data = load_data(
            config.data,
            model_sizes=sizes,
            cache_dir=config.cache.folder,
            show_progress=accelerator.is_local_main_process,
        )
    job = Job(accelerator, data, not options.no_wandb, signals)
    for note in data.notes:
        job.say(f"  {note}")

    # ------------------------------------------------------------- all that can be wrong, before long work starts
    members = find_mistakes(config, job, options.resume)
    for note in [note for member in members for note in member.notes]:
        job.say(f"  {note}")
    on_demand = [index for index, teacher in enumerate(config.teachers) if teacher.train]
    ready = Panel(
        [member for index, member in enumerate(members) if index not in on_demand], Predictor(accelerator, config)
    )
    judge(ready, config, job, check=options.check)

    # -------------------------------------------------------------------------------------------------- check
    if options.check:
        found = {index: path for index in on_demand if (path := teachers.find_teacher(config, index, data))}
        for index, path in found.items():
            members[index] = teachers.load(config.teachers[index], index, data, config, path)
        judge(Panel([members[index] for index in found], Predictor(accelerator, config)), config, job, check=True)
        cost = run(config, job, members=members, check=True)
        job.say(report.cost(config, data, accelerator, [m.name for m in members], len(on_demand) - len(found), **cost))
        if len(options.seeds) > 1:
            job.say(f"  seeds     {len(options.seeds)} such runs, one after another")
        accelerator.end_training()
        return

    # ----------------------------------------------------------------- teachers, comparison, then the student
    for index in on_demand:
        path = ensure_teacher(config, index, job)
        members[index] = teachers.load(config.teachers[index], index, data, config, path)
    folders: list[str] = []
    for number, seed in enumerate(options.seeds, 1):
        if len(options.seeds) > 1:
            job.say(f"seed {seed}, {number} of {len(options.seeds)}")
        own = configuration.with_seed(config, seed)
        folders += train_student(own, job, members, options.resume, arguments, bool(options.config))
    if len(options.seeds) > 1 and accelerator.is_main_process:
        from kd_core.comparison import (
            tables as comparison_tables,  # plots and statistics take a second, which other runs need not wait
        )

        job.say(f"\n{comparison_tables.of_folders(folders)}")
    accelerator.end_training()


def train_student(
    config: Config, job: Job, members: list[teachers.Teacher], resume: str, arguments: list[str], has_config: bool
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

    job.say(f"\n{report.results(summary, baseline)}\n")
    page = Path(summary["run_folder"]) / "report" / "index.html"
    job.say(report.next_steps(summary, page=page if page.is_file() else None, imports=config.imports))
    if not has_config and config.teachers:
        job.say(f"another way: {commands.another_method('train_kd.py', arguments, config.kd.type)}")
    if not has_config and config.data.source == "digits":
        job.say("real data:   python train_kd.py --config configs/cifar32/dynamic-rdv-gamma2-threshold0.3.yaml --check")
    if findings := [Finding(**finding) for finding in summary.get("findings") or []]:
        job.say(f"\n{report.findings_lines(findings)}")
    return [one["run_folder"] for one in (baseline, summary) if one is not None]


def find_mistakes(config: Config, job: Job, resume: str) -> list[teachers.Teacher]:
    """The teachers, once nothing is known to be wrong any more; untrained ones stand for those trained on demand.

    UserError lists everything that can be known before anything is trained.
    """
    data, processes = job.data, job.accelerator.num_processes
    problems: list[str] = []

    def attempt(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except UserError as error:
            problems.append(str(error))

    def check_run(own: Config, where: str = "", *, trained: bool = False, **keys: str) -> None:
        batch, training, before = own.data.batch_size, own.training, len(problems)
        if batch % processes:
            problems.append(
                f"{where}data.batch_size: {batch}, for all processes, does not divide by {processes} processes"
            )
        if len(data.train) < batch:
            problems.append(f"{where}data.batch_size: {batch} is larger than the {len(data.train)} training images")
        if training.patience is not None and data.val is None:
            problems.append(
                f"{where}training.patience: needs a validation split, and there is none (data.val_size is 0)"
            )
        pupil = attempt(lambda: student.build(own, data))
        if pupil:
            attempt(lambda: create_optimizer(pupil.model, training, torch.device("cpu")))
        if len(problems) == before and not trained:
            wanted, predict = own.model, Predictor(job.accelerator, own)
            usual = models.usual_size(wanted.name, wanted.stem)
            subject = dry_run.Subject(wanted.name, pupil.preprocess.size, usual, **keys)
            attempt(lambda: dry_run.train_once(pupil, own, data, predict, subject))

    check_run(config)
    attempt(lambda: interface.check_method(config.kd, len(config.teachers), data.num_classes))
    members = []
    for index, teacher in enumerate(config.teachers):
        if teacher.train:
            own = attempt(lambda index=index: teachers.training_config(config, index))  # type: ignore[misc]
            if own:
                place = f"teachers[{index}]"
                keys = {key: f"{place}.{key}" for key in ("model", "img_size", "args")}
                keys["batch_size"] = f"{place}.train: data.batch_size"
                found = teachers.find_teacher(config, index, data)
                check_run(own, f"{place}.train: ", trained=found is not None, **keys)
                members.append(attempt(lambda index=index: teachers.untrained(config, index, data)))  # type: ignore[misc]
        else:
            members.append(attempt(lambda i=index, t=teacher: teachers.load(t, i, data, config)))  # type: ignore[misc]
    if resume not in ("auto", "never"):
        attempt(lambda: open_run(config, data.fingerprint, resume))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    job.reset_device()  # of what the passes took
    return members


def ensure_teacher(config: Config, index: int, job: Job) -> Path:
    """The run folder of on-demand teacher `index`, which is trained first if need be."""
    own = teachers.training_config(config, index)
    label = f"teacher {index} ({own.model.name})"
    with ExitStack() as cleanup:
        if job.accelerator.is_main_process:
            folder = writable_folder(Path(config.output_dir), "output_dir")
            lock = held_lock(
                folder / f".teacher-{configuration.digest(own, job.data.fingerprint)}.lock",
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
    run_script(main, "train_kd.py", after_stop=f"; {commands.to_go_on('train_kd.py', sys.argv[1:])}")
