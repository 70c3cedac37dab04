"""MLflow tracking: runs, metrics, models, registry, UI."""
