"""Networks: built, loaded, exported and run over a split, and the features of their layers."""

from kd_core.data.views import Views
from kd_core.models.average import AVERAGED, WeightAverage, takes_average
from kd_core.models.exported import export_in
from kd_core.models.layer_features import (
    StudentAndMethod,
    WithFeatures,
    build_method,
    layers_of,
    share_over_processes,
)
from kd_core.models.method_on_split import score
from kd_core.models.network import Network, from_export
from kd_core.models.network import build as build_network
from kd_core.models.predict import Images, Predictor

__all__ = [
    "AVERAGED", "Images", "Network", "Predictor", "StudentAndMethod", "Views", "WeightAverage", "WithFeatures",
    "build_method", "build_network", "export_in", "from_export", "layers_of", "score", "share_over_processes",
    "takes_average",
]  # fmt: skip
