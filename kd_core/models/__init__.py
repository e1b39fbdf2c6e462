"""Networks: built, loaded, exported and run over a split."""

from kd_core.models.interface import build_method
from kd_core.models.network import Network, export_in, from_export
from kd_core.models.network import build as build_network
from kd_core.models.predict import Images, Predictor, score

__all__ = ["Images", "Network", "Predictor", "build_method", "build_network", "export_in", "from_export", "score"]
