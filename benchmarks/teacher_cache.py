#!/usr/bin/env python
"""Epochs with one to three teachers, computed in every step or cached, against epochs without teachers.

    python -m benchmarks.teacher_cache [--pairs 15]    the same as: python -m benchmarks teachers ...

All epochs are train_kd.py's own, with a ResNet-8 student at batch 128; the time is that of the training steps (views,
teachers or cache, student, loss, optimizer, meter), without validation and checkpoints.  All runs share one process
and alternate with epochs without teachers.  `cold` is a lazily filled cache that starts empty.
"""

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Comparison, Options, Result, Target, hand_over, interleave_beside

TEACHERS = ("cifar_resnet14", "cifar_resnet8", "cifar_wrn_16_1")
BATCH, CLASSES, VAL, FIXED_VIEWS = 128, 100, 200, 4
ALONE = "without teachers"
WARM = ("clean", "lazy", "fixed")


def run(options: Options) -> list[Result]:
    steps = options.size(10, 2)
    data = write_parquet(options.folder("data"), steps * BATCH + VAL, CLASSES)
    networks = [{"name": name} if not options.quick else _runs.TINY for name in TEACHERS]
    teachers = _runs.trained_teachers(options.scratch, data, networks, val=VAL)
    counts = (1, 2, 3) if not options.quick else (1,)
    slow_pairs, pairs = options.few(3), options.pairs

    def words(name: str, count: int, mode: str, epochs: int, cache: str = "cache") -> list[str]:
        return _runs.words(
            options.scratch, name, data, student=_runs.TINY if options.quick else {"name": "cifar_resnet8"},
            teachers=teachers[:count], view="clean" if mode == "clean" else "shared",
            epochs=epochs, batch=BATCH, val=VAL,
            more=[
                f"--cache.mode={mode}", f"--cache.views={FIXED_VIEWS}", "--no-wandb",
                f"--cache.dir={options.scratch / cache}",
            ],
        )  # fmt: skip

    # Slow runs get few pairs.  A cold cache is filled by its first epoch, so each number of teachers has its own.
    slow = {ALONE: words("alone-slow", 0, "off", (slow_pairs + 1) * 2 * len(counts))}
    for count in counts:
        slow[f"online, K={count}"] = words(f"online-{count}", count, "off", slow_pairs + 1)
        slow[f"cold, K={count}"] = words(f"cold-{count}", count, "lazy", slow_pairs + 1, cache=f"cold-{count}")
    results = beside_alone(slow, slow_pairs, {})

    # Warm runs read a cache that a run of the same epochs, and so of the same views, has filled.
    fill = [*words("fill", max(counts), "lazy", pairs + 1), f"--model={_runs.as_word(_runs.TINY)}"]
    _runs.train(_runs.replaced(fill))
    warm = {ALONE: words("alone", 0, "off", (pairs + 1) * len(WARM) * len(counts))}
    for count in counts:
        warm |= {f"warm {mode}, K={count}": words(f"{mode}-{count}", count, mode, pairs + 1) for mode in WARM}
    target = Target(1.05)
    return results + beside_alone(warm, pairs, {f"warm {mode}, K={len(TEACHERS)}": target for mode in WARM})


def beside_alone(words: dict[str, list[str]], pairs: int, targets: dict[str, Target]) -> list[Result]:
    """Epochs of each run, each next to an epoch without teachers."""
    with _runs.turns(words) as runs:
        steps = {name: turn.step_seconds for name, turn in runs.items()}
        seconds = interleave_beside(steps.pop(ALONE), steps, pairs)
        for name, turn in runs.items():
            if name.startswith("warm"):
                assert turn.row["perf/teacher_cache_hit_rate"] == 1, (name, turn.row)
    return [
        Comparison(f"{name} / {ALONE}", own, alone, "s per step", targets.get(name))
        for name, (own, alone) in seconds.items()
    ]


if __name__ == "__main__":
    hand_over("teachers")
