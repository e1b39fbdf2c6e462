"""Names of a run's metrics, and its rows without the values that differ between equal runs."""

# of every run, whatever its method; OWN: of each method beyond these
EVERY_RUN = {
    "epoch",
    "learning_rate",
    "train/loss_total",
    "train/accuracy",
    "train/loss_label",
    "train/loss_distill",
    "train/kd_weight",
    "train/step_time",
    "val/accuracy",
    "val/loss_total",
    "val/auroc",
    "val/loss_ce",
    "perf/epoch_time",
    "perf/data_time",
    "perf/teacher_time",
    "perf/images_per_second",
    "perf/teacher_cache_hit_rate",
    "perf/gpu_memory_peak_mb",
}
OWN = {
    "baseline": set(),
    "average": {"train/loss_kl", "train/loss_ce"},
    "ca_weighted": {"train/loss_kl", "train/loss_ce"},
    "dynamic": {"train/loss_soft", "train/loss_hard", "train/gate", "train/avg_teacher_conf"},
    "confidence": {
        "train/loss_soft",
        "train/loss_hard",
        "train/dynamic_alpha",
        "train/max_teacher_conf_mean",
        "train/teacher_0_usage_fraction",
        "train/teacher_1_usage_fraction",
    },
}
WEIGHTINGS = ("aekd", "best", "ca_mkd", "covariance", "ebkd", "fixed", "min_ce", "random")
OWN |= dict.fromkeys(WEIGHTINGS, OWN["average"])


def times_apart(rows: list[dict]) -> list[dict]:
    """The rows without times and memory usage."""
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/") and "step_time" not in name}
        for row in rows
    ]
