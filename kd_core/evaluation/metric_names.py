"""The name of each metric wherever people read it: console, page, plots, model card, docs/metrics.md."""

from __future__ import annotations

# By the key in files.  Keys are a contract; the words shown for them are only here.
LABELS = {
    "accuracy": "accuracy",
    "accuracy_interval": "95% interval of the accuracy (Wilson)",
    "macro_accuracy": "macro accuracy",
    "top5": "top-5 accuracy",
    "auroc": "AUROC (one-vs-rest, macro)",
    "auroc_classes_left_out": "classes left out of AUROC",
    "nll": "cross-entropy (nats)",
    "loss_ce": "cross-entropy (nats)",
    "brier": "Brier score",
    "ece": "calibration error (ECE, 15 bins)",
    "ece_adaptive": "adaptive calibration error (15 bins)",
    "temperature": "fitted temperature",
    "agreement": "agreement with student",
    "kl": "KL to student (nats)",
    "all_agree": "teachers all agree",
    "disagree": "teachers disagree",
    "all_wrong": "teachers all wrong",
    "oracle": "at least one teacher right",
    "superclass_accuracy": "right superclass",
    "alone": "student alone",
    "gain": "difference to the student alone",
    "gain_images": "difference in images",
    "gain_error": "standard error of the difference",
    "ensemble": "teachers' ensemble",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds per image",
    "checkpoint_bytes": "size of model.safetensors",
    "latency_ms": "latency (ms)",
    "images_per_second": "images per second",
}
