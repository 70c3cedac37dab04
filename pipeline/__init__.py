"""The application: the only place with files, clock, command line and MLflow."""
