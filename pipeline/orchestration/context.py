"""A stage's inputs, workspace and outputs."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config

if TYPE_CHECKING:
    from models.settings.encoder import EncoderSettings
    from models.settings.training import TrainSettings
    from pipeline.dataset.dataset import Dataset
    from pipeline.modelling.trainer import Trainer
    from pipeline.tracking.live import LiveRun
    from pipeline.tracking.record import RunRecord
    from pipeline.tracking.registry import ModelSource


@dataclass
class Context:
    """What a stage is given: where to read, where to write, and what to say of itself."""

    config: Config
    folder: Path
    """The workspace; committed when the stage returns."""
    inputs: dict[str, Path]
    """Folder of each stage it needs."""
    sources: dict[str, dict[str, str]]
    """Role to {path: content digest} of the source files (ingest)."""
    model: "ModelSource | None"
    """Where the bundle to score with comes from (score)."""
    track: "RunRecord"
    """What to log."""
    live: "LiveRun"
    """Metrics that are worth seeing before the stage ends."""
    stage_folder: Path
    """The folder of all artifacts of this stage."""
    show_progress: bool
    force: bool = False
    """Whether --force asked for the stage: then nothing that is kept is trusted."""
    digests: dict[str, str] = field(default_factory=dict)
    """sha256 by relative path of files in the workspace that are links to files on disk: not read again when it is committed."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """rows_in, rows_out, rows_left_out and what the stage adds."""
    said: str = ""

    def summary(self, text: str) -> None:
        """Set the one line that the stage ends with."""
        self.said = text

    @cached_property
    def dataset(self) -> "Dataset":
        """The stage's features artifact, opened once."""
        from pipeline.dataset.dataset import Dataset

        return Dataset.open(self.inputs["features"])

    def trainer(
        self, *, encoder: "EncoderSettings | None" = None, train: "TrainSettings | None" = None
    ) -> "Trainer":
        """A trainer with checkpoints in the workspace whose metrics are shown and logged as this stage's."""
        from pipeline.modelling.trainer import Trainer

        return Trainer(
            self.config,
            self.dataset,
            self.folder / "checkpoints",
            encoder=encoder,
            train=train,
            on_epoch=self.live.metrics,
            log=self.track.metric,
            show_progress=self.show_progress,
        )
