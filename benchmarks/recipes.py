"""Strong training: mixed images, averaged weights, batches in parts, and strong views with cached teachers.

All are epochs of train_kd.py that alternate.  `mixup`, `cutmix`, `ema` and `parts` (`training.accumulate: 2`) are the
plain run of ResNet-20 with that setting alone.  `teachers` are three, whose logits of four strong views per image
(RandAugment 2/9 and cutmix) are cached and read from warm pages; `alone` is the same student on such views without
them.
"""

from collections.abc import Iterator

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Options, Result, Target, compare, interleave

BATCH, CLASSES, VAL, STEPS = 128, 100, 200, 15
STUDENT = {"name": "cifar_resnet20"}
TEACHERS = ("cifar_resnet8", "cifar_wrn_16_1", "cifar_resnet8")
SETTINGS = {
    "mixup": ["--augment.mixup={}"],
    "cutmix": ["--augment.cutmix={}"],
    "ema": ["--training.ema={}"],
    "parts": ["--training.accumulate=2"],
}
STRONG = ["--augment.randaugment={}", "--augment.cutmix={}", "--cache.mode=fixed", "--cache.views=4"]
SWITCH, CACHED = Target(1.03), Target(1.05)


def run(options: Options) -> Iterator[Result]:
    data = write_parquet(options.folder("data"), options.size(STEPS, 2) * BATCH + VAL, CLASSES)
    student = STUDENT if not options.quick else _runs.TINY
    networks = [{"name": name} if not options.quick else _runs.TINY for name in TEACHERS]
    teachers = _runs.trained_teachers(options.scratch, data, networks, val=VAL)

    def words(name: str, more: list[str], *, taught: bool = False) -> list[str]:
        return _runs.words(
            options.scratch, name, data, student=student, teachers=teachers if taught else (), epochs=options.pairs + 1,
            batch=BATCH, val=VAL, more=["--no-wandb", *more],
        )  # fmt: skip

    for name, more in SETTINGS.items():
        runs = {name: words(name, more), "plain": words(f"plain-{name}", [])}
        yield _compared(runs, "plain", options.pairs, None if options.quick else SWITCH)
    runs = {"teachers": words("teachers", STRONG, taught=True), "alone": words("alone", STRONG)}
    yield _compared(runs, "alone", options.pairs, None if options.quick else CACHED)


def _compared(runs: dict[str, list[str]], reference: str, pairs: int, target: Target | None) -> Result:
    """Seconds per step of the first run, by those of `reference`."""
    with _runs.turns(runs) as turns:
        values = interleave({name: turn.step_seconds for name, turn in turns.items()}, pairs)
        [name] = runs.keys() - {reference}
        if name == "teachers":
            assert turns[name].row["perf/teacher_cache_hit_rate"] == 1, turns[name].row
    return compare(values, name, reference, "s per step", target)
