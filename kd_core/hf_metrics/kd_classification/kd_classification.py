"""Classification metrics of kd_core.metrics as a Hugging Face `evaluate` module, loaded by path: it works offline."""

import datasets
import evaluate
import torch

from kd_core import metrics

_DESCRIPTION = "Accuracy (top-1, top-5, macro), cross-entropy, Brier score, calibration errors and AUROC, from logits."


class KDClassification(evaluate.Metric):
    """predictions: logits, one list of C floats per sample; references: integer labels."""

    def __init__(self, **options):
        super().__init__(**options)
        # All rows have equal length, so they are read back as one array instead of a Python object per number.
        # `MetricInfo` itself accepts a format only where a row is a single value.
        self.info.format = "numpy"

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=str(self.__doc__),
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references):
        return metrics.classification(torch.as_tensor(predictions), torch.as_tensor(references))
