"""Model bundle and batch scoring: business rules, cold start, output tables."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.serving.pyfunc import Recommender


def _load_pyfunc(data_path: str) -> "Recommender":
    """Open a bundle's folder for mlflow.pyfunc.load_model; registered versions name this package as their loader."""
    from pipeline.serving.pyfunc import load

    return load(data_path)
