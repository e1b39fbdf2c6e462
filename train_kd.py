#!/usr/bin/env python
"""Distil an image classifier from several teachers.

    python train_kd.py                                         quickstart: digits, three teachers, about two minutes
    python train_kd.py --config configs/cifar32/dynamic_r_m_v.yaml      one of the shipped experiments
    accelerate launch train_kd.py --config X.yaml --kd.temperature=8    several GPUs, mixed precision
    python train_kd.py --config X.yaml --check                 build all, time 20 steps, say what the run will cost
    wandb agent -f SWEEP_ID                                    trials of a sweep, see sweeps/

switches:
    --config FILE         YAML with the settings that differ from the defaults (without it: configs/quickstart.yaml)
    --section.key=VALUE   any setting below, as YAML; whole sections too: --teachers='[{model: ..., train: ...}]'
    --resume auto|never|RUN_FOLDER   auto (default): continue the unfinished run with the same settings; a finished
                          one prints its result
    --fresh               the same as --resume never
    --no-wandb            no Weights & Biases; metrics.jsonl in the run folder is written all the same
    --check               build everything, measure the teachers, time 20 real steps, then exit
    --print-config        print the resolved settings as YAML, then exit
    --help                this text

exit status: 0 done, 2 a mistake in the settings or files (one clear message), 1 a failure of this program
"""

import argparse
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast_object_list, set_seed
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

import kd_core.zoo  # noqa: F401 - registers the cifar_ networks with timm
import kd_methods
from kd_core import config as configuration
from kd_core import metrics, models, report, teachers
from kd_core.checkpoints import RunFolder, create_run, find_run, load_latest, new_run_id, open_run, save_latest
from kd_core.config import Config, Layer
from kd_core.data import Data, ImageStore, load_data
from kd_core.errors import UserError
from kd_core.files import replacing_folder, writable_folder, write_json
from kd_core.inference import predict, set_memory_format
from kd_core.meter import Meter, NonFinite
from kd_core.optim import create_optimizer, learning_rate_at, set_learning_rate
from kd_core.timing import Stopwatch, clock, peak_device_memory_mb, peak_host_memory_mb, wait_for
from kd_core.tracking import Tracker
from kd_core.views import Views, batch_rows, epoch_order, view_ids
from kd_methods import StudentOutput, TeacherOutputs

CHECK_STEPS = 20


@dataclass
class Job:
    """What all runs of one process share."""

    accelerator: Accelerator
    data: Data
    use_wandb: bool = True

    def say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


# ============================================================================================== one training run


def run(
    config: Config, job: Job, *, trained: dict[int, Path] | None = None, resume: str = "auto", check: bool = False
) -> dict[str, Any]:
    """Train one student as `config` says and return its summary; with `check`, only measure.

    `trained` maps teacher numbers to the run folders of teachers trained on demand.  All processes call this together.
    """
    accelerator, data, say = job.accelerator, job.data, job.say
    device, training = accelerator.device, config.training
    batch = config.data.batch_size // accelerator.num_processes
    train, val = data.train, data.val

    # ------------------------------------------------------------------------------------- continue or start
    folder, run_id = find_or_create(config, job, resume) if not check else (None, new_run_id())
    if folder is not None and folder.summary().get("status") == "finished":
        say(f"already finished: {folder.path} (--fresh trains anew)")
        return folder.summary()

    with ExitStack() as cleanup:
        if folder is not None and accelerator.is_main_process:
            lock = FileLock(folder.path / ".lock", timeout=0)
            try:
                cleanup.enter_context(lock)
            except Timeout:
                raise UserError(f"{folder.path}: is being trained by another process; --fresh starts a second run") from None

        # ----------------------------------------------------------------------- student, teachers, method
        set_seed(training.seed)
        student = build_student(config, data)
        preprocess = student_preprocess(student, config, data)
        views = Views(preprocess, data.image_size, crop_padding=config.data.crop_padding, flip=config.data.flip)
        set_memory_format(student.to(device), training.channels_last)
        parameters = models.count_parameters(student)
        members = [
            teachers.load(teacher, index, data, config, (trained or {}).get(index))
            if not check or teacher.weights or index in (trained or {})
            else untrained_teacher(config, index, data)
            for index, teacher in enumerate(config.teachers)
        ]
        panel = teachers.Teachers(members, accelerator, channels_last=training.channels_last)
        method = kd_methods.build(config.kd, num_classes=data.num_classes, label_smoothing=training.label_smoothing).to(device)
        if accelerator.num_processes > 1:
            method.reduce_mean = lambda values: accelerator.reduce(values, "mean")

        # ------------------------------------------------------------------------------------ data on the device
        store = ImageStore(train, device, on_device=config.data.store)
        val_store = ImageStore(val, device, on_device=config.data.store) if val else None
        rows, val_rows = train.rows.to(device), val.rows.to(device) if val else None
        val_labels = val.labels[val.rows].to(device) if val else None
        eval_batch = config.evaluation.batch_size or config.data.batch_size

        # ------------------------------------------------------------------------- how good the teachers are
        val_teacher_logits, measured = None, []
        if len(panel) and val_store is not None and not check:
            val_teacher_logits, measured = panel.measure(val_store, val_rows, val_labels, batch_size=eval_batch)
            for index, (teacher, figures) in enumerate(zip(members, measured, strict=False)):
                say(f"  teacher {index} {teacher.name}: validation accuracy {figures['accuracy']:.2%}, view {teacher.view}")
                if teacher.stated_accuracy is not None and figures["accuracy"] > teacher.stated_accuracy + 0.05:
                    say(f"  teacher {index} is far better here than its file says ({teacher.stated_accuracy:.2%}): "
                        "it has probably been trained on these validation images")  # fmt: skip
            say(f"  teachers' ensemble: validation accuracy {measured[-1]['accuracy']:.2%}")

        # ------------------------------------------------------------------------------ optimizer and schedule
        optimizer = create_optimizer(student, training, device)
        steps_per_epoch = len(train) // config.data.batch_size
        total_steps = steps_per_epoch * training.max_epochs
        if training.sync_bn and accelerator.num_processes > 1 and device.type == "cuda":
            student = torch.nn.SyncBatchNorm.convert_sync_batchnorm(student)
        model = torch.compile(student) if training.compile else student
        # The schedule is a function of the step and teachers are frozen, so neither is prepared.
        model, optimizer = accelerator.prepare(model, optimizer)

        # ------------------------------------------------------------------------------------------ one step
        data_watch, teacher_watch = Stopwatch(device), Stopwatch(device)
        meter = Meter(reduce_sum=accelerator.reduce)

        def train_step(epoch: int, step_in_epoch: int, order: Tensor) -> None:
            step = epoch * steps_per_epoch + step_in_epoch
            set_learning_rate(
                optimizer,
                learning_rate_at(step, total_steps=total_steps, steps_per_epoch=steps_per_epoch, training=training),
            )
            with data_watch.running():
                index = batch_rows(order, config.data.batch_size, step_in_epoch, accelerator.process_index, accelerator.num_processes)
                images, labels = store.gather(index)
                ids = view_ids(training.seed, epoch, index, crop_padding=config.data.crop_padding, flip=config.data.flip)
                student_view = views.train(images, ids, channels_last=training.channels_last)
            with teacher_watch.running():
                teacher_logits = panel(images, ids) if method.requires_teachers else None
            output = StudentOutput(model(student_view))
            loss, measures = method(output, TeacherOutputs(teacher_logits), labels, progress=step / total_steps)
            correct = (output.logits.argmax(1) == labels).float().mean()
            meter.add(step, {"loss_total": loss, "accuracy": correct, **measures})
            accelerator.backward(loss)
            if training.clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()
            optimizer.zero_grad()

        if check:
            return measure_cost(config, job, panel, method, parameters, steps_per_epoch, train_step, epoch_order(training.seed, 0, rows))
        assert folder is not None

        # ------------------------------------------------------------------------------------- where it stood
        state: dict[str, Any] = {"epoch": 0, "best_epoch": 0, "best_accuracy": -1.0, "waited": 0, "metrics_offset": None}
        resumed = load_latest(folder, say)
        if resumed:
            path, tensors, state = resumed
            weights = models.load_export(path / "student").model.state_dict()
            student.load_state_dict(weights)
            optimizer.load_state_dict(tensors["optimizer"])
            method.load_state_dict(tensors["method"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(tensors["scaler"])
            say(f"resuming {folder.path} after epoch {state['epoch']}")
        else:
            say(f"training {config.experiment} in {folder.path}")
        tracker = Tracker(
            config, folder, run_id=run_id, enabled=accelerator.is_main_process, use_wandb=job.use_wandb, notify=say,
            tags=[config.model.name], extra_config={**config.flat(data.num_classes), "parameters": parameters},
            offset=state["metrics_offset"],
        )  # fmt: skip
        for teacher in members:
            if teacher.artifact:
                tracker.use_artifact(teacher.artifact)
        if measured and not resumed:
            tracker.log({"epoch": 0, **teacher_rows(measured)})

        def write_export(path: Path, figures: dict[str, Any]) -> None:
            """The student as it is now, in timm's format, with what was measured."""
            models.export(
                accelerator.unwrap_model(model, keep_torch_compile=False), path,
                architecture=models.architecture(config.model.name, config.model.stem), model_args=student_args(config),
                num_classes=data.num_classes, class_names=data.class_names, preprocess=preprocess,
                extra={"data": data_identity(config, data), "kd": config.kd.model_dump(mode="json"),
                       "teachers": [teacher.name for teacher in members]},
            )  # fmt: skip
            write_json(path / "metrics.json", figures)

        def validate(epoch: int) -> dict[str, float]:
            """Metrics of the validation split, the method's own loss included."""
            if val_store is None:
                return {}
            logits = predict(student, val_store, val_rows, views, accelerator, batch_size=eval_batch, channels_last=training.channels_last)
            return scores("val", logits, val_teacher_logits, val_labels, method, config, (epoch + 1) / training.max_epochs)

        # --------------------------------------------------------------------------------------- the epochs
        exit_code = 1
        cleanup.callback(lambda: tracker.finish(exit_code))
        began, first_epoch = time.perf_counter(), state["epoch"]
        figures: dict[str, Any] = state.get("last_metrics", {})
        try:
            for epoch in range(first_epoch, training.max_epochs):
                if training.patience is not None and state["waited"] >= training.patience:
                    break
                epoch_began = time.perf_counter()
                # Dropout and the like draw from a generator that depends on (seed, epoch, process) alone.
                set_seed(training.seed + 1_000_003 * (epoch + 1) + accelerator.process_index)
                order = epoch_order(training.seed, epoch, rows)
                meter.start_epoch()
                model.train()
                bar = tqdm(range(steps_per_epoch), desc=f"epoch {epoch + 1}/{training.max_epochs}", leave=False,
                           disable=None if accelerator.is_main_process else True)  # fmt: skip
                interval_began, interval_steps = time.perf_counter(), 0
                for step_in_epoch in bar:
                    train_step(epoch, step_in_epoch, order)
                    step, interval_steps = epoch * steps_per_epoch + step_in_epoch + 1, interval_steps + 1
                    if step % training.log_every == 0:
                        means = meter.reading()  # the only wait for the device within an epoch
                        step_time = (time.perf_counter() - interval_began) / interval_steps
                        lr = optimizer.param_groups[0]["lr"]
                        tracker.log({"train_step/step": step, "train_step/learning_rate": lr, "train_step/step_time": step_time,
                                     **{f"train_step/{name}": value for name, value in means.items()}})  # fmt: skip
                        bar.set_postfix(loss=f"{means['loss_total']:.3f}", acc=f"{means['accuracy']:.1%}", lr=f"{lr:.2g}",
                                        left=clock((total_steps - step) * step_time), refresh=False)  # fmt: skip
                        interval_began, interval_steps = time.perf_counter(), 0
                means = meter.epoch()
                trained_seconds = time.perf_counter() - epoch_began

                figures = {
                    "epoch": epoch + 1,
                    "learning_rate": optimizer.param_groups[0]["lr"],
                    **{f"train/{name}": value for name, value in means.items()},
                    "train/step_time": trained_seconds / steps_per_epoch,
                    **validate(epoch),
                    "perf/data_time": data_watch.read(),
                    "perf/teacher_time": teacher_watch.read(),
                    "perf/images_per_second": steps_per_epoch * config.data.batch_size / trained_seconds,
                    "perf/teacher_cache_hit_rate": 0.0,
                    "perf/gpu_memory_peak_mb": peak_device_memory_mb(device),
                    "perf/epoch_time": time.perf_counter() - epoch_began,
                }
                tracker.log(figures)
                accuracy = figures.get("val/accuracy")
                better = accuracy is None or accuracy > state["best_accuracy"]
                state.update(epoch=epoch + 1, waited=0 if better else state["waited"] + 1, metrics_offset=tracker.offset,
                             run_id=run_id, last_metrics=figures)  # fmt: skip
                if better:
                    state.update(best_epoch=epoch + 1, best_accuracy=-1.0 if accuracy is None else accuracy, best_metrics=figures)
                if accelerator.is_main_process:
                    if better:
                        with replacing_folder(folder.checkpoint("best")) as path:
                            write_export(path / "student", figures)
                        tracker.upload_best(folder.checkpoint("best") / "student", epoch + 1, figures)
                    save_latest(
                        folder, lambda path: write_export(path, figures),  # noqa: B023 - called at once
                        {"optimizer": optimizer.state_dict(), "method": method.state_dict(),
                         "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None},
                        state,
                    )  # fmt: skip
                left = (time.perf_counter() - began) / (epoch + 1 - first_epoch) * (training.max_epochs - epoch - 1)
                say(
                    f"epoch {epoch + 1}/{training.max_epochs}  loss {means['loss_total']:.3f}  train {means['accuracy']:.2%}"
                    + (f"  val {accuracy:.2%}" if accuracy is not None else "")
                    + f"  lr {figures['learning_rate']:.2g}  {figures['perf/epoch_time']:.1f} s  left {clock(left)}"
                    + ("  best" if better and accuracy is not None else "")
                )
        except NonFinite as error:
            last = f"the last good checkpoint is {folder.checkpoint('latest')}" if state["epoch"] else "no epoch was complete"
            raise NonFinite(
                f"train/{error}; {last}. Usual causes: a learning rate that is too high "
                f"(training.learning_rate is {training.learning_rate:g}), fp16 without training.clip"
            ) from None

        # ------------------------------------------------------------------------------------------ the end
        best, selected = folder.checkpoint("best") / "student", state["best_metrics"]
        tested: dict[str, float] = {}
        if config.evaluation.test_at_end:
            student.load_state_dict(models.load_export(best).model.state_dict())
            tested = test_scores(config, job, student, views, panel, method)
            tracker.log({"epoch": state["epoch"], **tested})
        summary = {
            "status": "finished",
            "exit_status": 0,
            "run_folder": str(folder.path),
            "student_model": models.architecture(config.model.name, config.model.stem),
            "parameters": parameters,
            "kd_type": config.kd.type,
            "epochs": state["epoch"],
            "best_epoch": state["best_epoch"],
            "val_accuracy": selected.get("val/accuracy"),
            "val_auroc": selected.get("val/auroc"),
            "best_val_accuracy": selected.get("val/accuracy"),
            "final_val_accuracy": figures.get("val/accuracy"),
            "final_test_accuracy": tested.get("test/accuracy"),
            "teachers": [
                {"name": teacher.name, "parameters": teacher.parameters, "val_accuracy": row and row["accuracy"], "val_auroc": row and row["auroc"]}
                for teacher, row in zip(members, measured or [None] * len(members), strict=False)
            ],
            "ensemble": {"val_accuracy": measured[-1]["accuracy"], "val_auroc": measured[-1]["auroc"]} if measured else None,
        }
        tracker.summarize(**{key: summary[key] for key in ("final_val_accuracy", "best_val_accuracy", "best_epoch", "final_test_accuracy")
                             if summary[key] is not None}, **(teacher_rows(measured) if measured else {}))  # fmt: skip
        tracker.upload_final(best, state["best_epoch"], selected, folder.checkpoint("latest") / "student", state["epoch"], figures)
        if accelerator.is_main_process:
            with replacing_folder(folder.student) as path:
                for file in best.iterdir():
                    (path / file.name).write_bytes(file.read_bytes())
            summary = folder.write_summary(**summary)
        exit_code = 0
        accelerator.wait_for_everyone()
        accelerator.free_memory()
    return summary


# ================================================================================================ parts of a run


def find_or_create(config: Config, job: Job, resume: str) -> tuple[RunFolder, str]:
    """The run folder to continue, or a new one; the main process decides for all."""
    choice: list[Any] = [None, None]
    if job.accelerator.is_main_process:
        wanted = os.environ.get("WANDB_RUN_ID") if job.use_wandb else None  # set by `wandb agent`
        folder = None
        if resume not in ("auto", "never"):
            folder = open_run(Path(resume))
            if folder.summary().get("config_digest") != config.digest(job.data.fingerprint):
                raise UserError(f"--resume: {resume} was trained with other settings, see its config.yaml; pass the same --config and overrides")
        elif resume == "auto":
            folder = find_run(config, job.data.fingerprint, wanted)
        if folder is None:
            folder = create_run(config, job.data.fingerprint, wanted or new_run_id())
        choice = [str(folder.path), folder.summary()["run_id"]]
    broadcast_object_list(choice)
    return RunFolder(Path(choice[0])), choice[1]


def build_student(config: Config, data: Data) -> torch.nn.Module:
    return models.create_model(
        config.model.name, num_classes=data.num_classes, img_size=config.model.img_size, stem=config.model.stem,
        pretrained=config.model.pretrained, args=config.model.args, where="model.name",
    )  # fmt: skip


def student_preprocess(student: torch.nn.Module, config: Config, data: Data) -> models.Preprocess:
    """The data set's mean and deviation for a student trained from scratch, the model's own for a pretrained one."""
    choice = config.model.normalization
    own = choice == "model" or (choice == "auto" and config.model.pretrained)
    mean, std = (None, None) if own else (data.mean, data.std)
    return models.preprocess_of(student, img_size=config.model.img_size, mean=mean, std=std)


def student_args(config: Config) -> dict[str, Any]:
    """What timm.create_model needs besides the name to build the same network."""
    return dict(config.model.args)


def untrained_teacher(config: Config, index: int, data: Data) -> teachers.Teacher:
    """A stand-in with random weights for a teacher that is yet to be trained: right for timing, wrong for anything else."""
    own = teachers.training_config(config, index)
    model = build_student(own, data).eval().requires_grad_(False)
    views = Views(student_preprocess(model, own, data), data.image_size, crop_padding=config.data.crop_padding, flip=config.data.flip)
    return teachers.Teacher(f"{own.model.name} (not trained yet)", model, views, config.teachers[index].view)


def data_identity(config: Config, data: Data) -> dict[str, Any]:
    return {"source": config.data.source, "name": config.data.name, "fingerprint": data.fingerprint}


def teacher_rows(measured: list[dict[str, float]]) -> dict[str, float]:
    """teacher/{i}/val_accuracy and teacher/ensemble/val_accuracy (the last entry)."""
    names = [*range(len(measured) - 1), "ensemble"]
    return {f"teacher/{name}/val_accuracy": row["accuracy"] for name, row in zip(names, measured, strict=True)}


@torch.no_grad()
def scores(
    split: str, logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, method: kd_methods.KDMethod, config: Config, progress: float
) -> dict[str, float]:
    """accuracy, auroc, loss_ce and loss_total of `split` from logits [n,C], teachers' [K,n,C] and labels [n].

    loss_total is the method's own loss, averaged over samples in chunks of the training batch size.
    """
    figures = metrics.classification(logits, labels)
    method.eval()
    total = logits.new_zeros((), dtype=torch.float64)
    for start in range(0, len(labels), config.data.batch_size):
        chunk = slice(start, start + config.data.batch_size)
        teachers_chunk = teacher_logits[:, chunk] if teacher_logits is not None else None
        loss, _ = method(StudentOutput(logits[chunk]), TeacherOutputs(teachers_chunk), labels[chunk], progress=progress)
        total += loss.double() * len(labels[chunk])
    method.train()
    row = {f"{split}/{name}": figures[name] for name in ("accuracy", "auroc", "loss_ce")}
    if figures["auroc_classes_left_out"]:
        row[f"{split}/auroc_classes_left_out"] = figures["auroc_classes_left_out"]
    return {**row, f"{split}/loss_total": float(total) / len(labels)}


def test_scores(
    config: Config, job: Job, student: torch.nn.Module, views: Views, panel: teachers.Teachers, method: kd_methods.KDMethod
) -> dict[str, float]:
    """Open the test split, once, with the selected student."""
    split = job.data.test()
    if split is None:
        job.say("no test split: nothing to test")
        return {}
    store = ImageStore(split, job.accelerator.device, on_device=config.data.store)
    rows = split.rows.to(job.accelerator.device)
    labels = split.labels[split.rows].to(job.accelerator.device)
    options = {"batch_size": config.evaluation.batch_size or config.data.batch_size, "channels_last": config.training.channels_last}
    logits = predict(student, store, rows, views, job.accelerator, **options)
    taught = [
        teachers.round_to_fp16(predict(t.model, store, rows, t.views, job.accelerator, **options, label=f"testing teacher {i}"))
        for i, t in enumerate(panel.members)
    ]
    figures = scores("test", logits, torch.stack(taught) if taught else None, labels, method, config, 1.0)
    job.say(f"test accuracy {figures['test/accuracy']:.2%} on {len(labels)} images")
    return figures


def measure_cost(
    config: Config, job: Job, panel: teachers.Teachers, method: kd_methods.KDMethod, parameters: int, steps_per_epoch: int, train_step: Any, order: Tensor
) -> dict[str, Any]:
    """Time real steps and say what the run would cost."""
    device, training, data = job.accelerator.device, config.training, job.data
    steps = min(CHECK_STEPS, steps_per_epoch)
    for step in range(min(3, steps)):
        train_step(0, step, order)
    wait_for(device)
    began = time.perf_counter()
    for step in range(steps):
        train_step(0, step, order)
    wait_for(device)
    seconds = (time.perf_counter() - began) / steps
    total = seconds * steps_per_epoch * training.max_epochs
    disk = parameters * 4 * (2 * 2 + 2 + 1) / 1e6  # latest and its successor with optimizer state, best, student
    memory = peak_device_memory_mb(device) or peak_host_memory_mb()
    job.say(
        f"""check passed, nothing was trained or kept
  data      {len(data.train):,} training, {len(data.val) if data.val else 0:,} validation images, {data.num_classes} classes, {data.image_size} pixels
  student   {config.model.name}, {parameters:,} parameters
  teachers  {", ".join(teacher.name for teacher in panel.members) or "none"}
  loss      {method.describe(len(panel))}
  schedule  {training.optimizer}, {training.schedule}, peak learning rate {training.learning_rate:g}, {training.max_epochs} epochs of {steps_per_epoch} steps of {config.data.batch_size} images on {job.accelerator.num_processes} process(es)
  speed     {config.data.batch_size / seconds:,.0f} images per second over {steps} real steps ({seconds * 1000:.1f} ms a step)
  time      about {clock(total)} to the end, without validation
  memory    {memory:,.0f} MB at the peak on {device}
  disk      about {disk:,.0f} MB for checkpoints and the exported student"""
    )
    return {"images_per_second": config.data.batch_size / seconds}


# ======================================================================================================== main


def check_before_training(config: Config, data: Data, processes: int) -> None:
    """Mistakes that show without training anything: UserError lists all of them."""
    problems = []

    def attempt(action: Any) -> None:
        try:
            action()
        except UserError as error:
            problems.append(str(error))

    batch, training = config.data.batch_size, config.training
    if batch % processes:
        problems.append(f"data.batch_size: {batch} does not divide by the {processes} processes; it is the global batch")
    if len(data.train) < batch:
        problems.append(f"data.batch_size: {batch} is larger than the {len(data.train)} training images")
    if training.patience is not None and data.val is None:
        problems.append("training.patience: needs a validation split, and data.val_size is 0")
    attempt(lambda: writable_folder(Path(config.output_dir), "output_dir"))
    attempt(lambda: create_optimizer(build_student(config, data), training, torch.device("cpu")))
    for index, teacher in enumerate(config.teachers):
        if teacher.train:
            attempt(lambda index=index: untrained_teacher(config, index, data))
        else:
            attempt(lambda index=index, teacher=teacher: teachers.load(teacher, index, data, config))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def train_missing_teacher(config: Config, index: int, job: Job) -> Path:
    """The run folder of teacher `index`, trained first if there is none yet."""
    own = teachers.training_config(config, index)
    with ExitStack() as stack:
        if job.accelerator.is_main_process:
            lock = FileLock(Path(config.output_dir) / f".teacher-{own.digest(job.data.fingerprint)}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                job.say(f"teacher {index} ({own.model.name}) is being trained by another process; waiting for it")
                lock.acquire()
            stack.callback(lock.release)
        existing = find_run(own, job.data.fingerprint)
        if existing and existing.summary().get("status") == "finished":
            job.say(f"teacher {index} ({own.model.name}): found in {existing.path}")
        else:
            job.say(f"teacher {index} ({own.model.name}): not trained yet, training it now")
        in_trial = "WANDB_SWEEP_ID" in os.environ  # only the student is the trial's W&B run
        teacher_job = Job(job.accelerator, job.data, use_wandb=job.use_wandb and not in_trial)
        summary = run(own, teacher_job)
        job.accelerator.wait_for_everyone()
    return Path(summary["run_folder"])


def parse(arguments: list[str]) -> tuple[argparse.Namespace, configuration.Resolved]:
    """The command line -> switches and the resolved configuration."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("--resume", default="auto")
    for switch in ("--fresh", "--no-wandb", "--check", "--print-config", "--help", "-h"):
        parser.add_argument(switch, action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if options.help or options.h:
        print(f"{__doc__}\nsettings, as --key=type [default]:\n{configuration.describe_keys()}")
        sys.exit(0)
    path = configuration.find_file(options.config, "--config") if options.config else configuration.QUICKSTART
    layers = [Layer(str(options.config or "configs/quickstart.yaml"), configuration.read_yaml(path))]
    layers.append(configuration.parse_overrides(rest))
    if options.no_wandb:
        layers.append(Layer("--no-wandb", {"wandb": {"mode": "disabled"}}))
    return options, configuration.resolve(layers)


def main(arguments: list[str]) -> None:
    options, resolved = parse(arguments)
    config = resolved.config
    if options.print_config:
        print(config.to_yaml(), end="")
        return

    # ------------------------------------------------------------------------------------------- environment
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    accelerator = Accelerator(
        mixed_precision=config.training.mixed_precision,
        dataloader_config=DataLoaderConfiguration(),
        step_scheduler_with_optimizer=False,
    )
    job = Job(accelerator, None, use_wandb=config.wandb.mode != "disabled")  # type: ignore[arg-type]
    if not options.config:
        job.say("no --config given: running the quickstart, configs/quickstart.yaml")
    for notice in resolved.notices:
        job.say(notice)

    # -------------------------------------------------------------------------------------------------- data
    sizes = [models.input_size(config.model.name, config.model.img_size, config.model.stem)]
    sizes += [models.input_size(t.model, t.img_size, t.stem) for t in config.teachers if t.model]
    with accelerator.main_process_first():  # the main process decodes, the others find the result
        job.data = data = load_data(config.data, model_sizes=sizes, cache_dir=config.cache.folder, show_progress=accelerator.is_main_process)
    for note in data.notes:
        job.say(f"  {note}")
    check_before_training(config, data, accelerator.num_processes)
    if options.check:
        found = {index: find_run(teachers.training_config(config, index), data.fingerprint) for index, t in enumerate(config.teachers) if t.train}
        run(config, job, trained={index: folder.path for index, folder in found.items() if folder}, check=True)
        accelerator.end_training()
        return

    # ---------------------------------------------------------------------------------- teachers, then students
    resume = "never" if options.fresh else options.resume
    trained = {index: train_missing_teacher(config, index, job) for index, teacher in enumerate(config.teachers) if teacher.train}
    baseline = None
    if config.training.compare_with_baseline and config.teachers:
        job.say("the same student without teachers, for comparison")
        alone = config.model_copy(update={
            "name": f"{config.experiment}-alone", "teachers": [],
            "kd": kd_methods.config_class(kd_methods.LABEL_ONLY)(),
        })  # fmt: skip
        in_trial = "WANDB_SWEEP_ID" in os.environ
        baseline = run(alone, Job(accelerator, data, use_wandb=job.use_wandb and not in_trial), resume=resume if resume in ("auto", "never") else "auto")
    summary = run(config, job, trained=trained, resume=resume)

    # ------------------------------------------------------------------------------------------------ results
    job.say(f"\n{report.results(summary, baseline)}\n")
    job.say(f"run folder: {summary['run_folder']}")
    job.say(f"next: python evaluate_kd.py --checkpoint {summary['run_folder']} --split test")
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"train_kd.py: {error}", file=sys.stderr)
        sys.exit(2)
