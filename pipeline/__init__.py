"""Application: the only package with files, clock, command line and MLflow."""
