"""User errors, one message each: what, where, received, expected, next step."""


class LookbackError(Exception):
    """The data or the run failed; the command ends with exit code 1."""

    exit_code = 1


class ConfigError(LookbackError):
    """The command or the configuration is wrong; the command ends with exit code 2."""

    exit_code = 2


class DamagedArtifact(LookbackError):
    """A file of an artifact is missing or differs from its manifest."""
