"""Peak memory of evaluation and report: 50,000 test images of 1,000 classes, three cached teachers, a student alone.

Anonymous memory of a process that trains the last epoch of a run and finishes it, above that with 1,000 images.  With
--against, the same of another checkout.
"""

from benchmarks import _runs
from benchmarks._measure import Figure, Options, Result, Target
from benchmarks.finish import ROOT, finish_once, trained_run
from benchmarks.memory import MEBIBYTE

CLASSES, VAL = 1_000, 2_000


def run(options: Options) -> list[Result]:
    few, many = 1_000, options.size(50_000, 2_000)
    checkouts = {"this": ROOT, **({"other": options.against} if options.against else {})}
    peaks: dict[str, dict[int, float]] = {name: {} for name in checkouts}
    for test in (few, many):
        home = options.folder(f"{test}")
        alone, words = trained_run(
            home, student=_runs.TINY, teacher=_runs.TINY, train=options.size(4 * CLASSES, 400),
            val=options.size(VAL, 100), test=test, classes=options.size(CLASSES, 10), batch=options.size(128, 32),
        )  # fmt: skip
        for name, checkout in (*checkouts.items(), *checkouts.items()):  # the first round fills the caches
            peaks[name][test] = finish_once(checkout, home / "copies", alone, words)["peak"] / MEBIBYTE
    growth = {name: own[many] - own[few] for name, own in peaks.items()}
    found: list[Result] = [
        Figure(f"{name}, {test:,} images: peak", own[test], "MiB") for name, own in peaks.items() for test in own
    ]
    found.append(Figure(f"this: growth to {many:,} images", growth["this"], "MiB"))
    if "other" in growth:
        target = Target(0.5)
        found.append(Figure("growth: this / the other", growth["this"] / growth["other"], "times", target))
    return found
