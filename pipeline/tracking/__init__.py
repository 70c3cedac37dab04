"""MLflow: runs, metrics, models, the registry, the UI."""
