"""A stage's inputs, workspace and outputs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.orchestration.registered_systems import RegisteredSystems

if TYPE_CHECKING:
    from models.settings.encoder import EncoderSettings
    from models.settings.training import TrainSettings
    from pipeline.dataset.dataset import Dataset
    from pipeline.dataset.protocol import Protocol
    from pipeline.modelling.trainer import Trainer
    from pipeline.tracking.live import LiveRun
    from pipeline.tracking.record import RunRecord
    from pipeline.tracking.registry import ModelSource


@dataclass
class Context:
    """Inputs, workspace and records of a running stage."""

    config: Config
    folder: Path
    """The workspace; committed when the stage returns."""
    inputs: dict[str, Path]
    """Needed stages to their artifact folders."""
    sources: dict[str, dict[str, str]]
    """Role to {path: content digest} of the source files (ingest)."""
    model: "ModelSource | None"
    """Source of the registered bundle that `score.model` names (score, similar)."""
    track: "RunRecord"
    """Parameters, metrics and files to log."""
    live: "LiveRun"
    """Metrics logged before the stage ends."""
    stage_folder: Path
    """Folder of all artifacts of this stage."""
    show_progress: bool
    force: bool = False
    """Whether --force names the stage: nothing kept is reused."""
    shadows: RegisteredSystems = field(default_factory=RegisteredSystems)
    """Registered models of `score.shadows` (score)."""
    arms: RegisteredSystems = field(default_factory=RegisteredSystems)
    """Registered models of `experiment.arms` (score)."""
    candidates: Path | None = None
    """File of `score.candidates` among which metrics are added (evaluate)."""
    start: "ModelSource | None" = None
    """Version that the training starts from (train, publish)."""
    previous: Path | None = None
    """Artifact of this stage that the result continues (monitor, baselines)."""
    digests: dict[str, str] = field(default_factory=dict)
    """Relative path to sha256 of hard links in the workspace, which the commit need not read."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """rows_in, rows_out, rows_left_out and the stage's own entries."""
    summary_line: str = ""
    progress: str = ""
    """Position of the stage in its work, for the lines of `heartbeat`."""
    failures: list[BaseException] = field(default_factory=list)
    """Exceptions of parts that run beside this thread; the next progress raises the first."""
    _parts: dict[str, str] = field(default_factory=dict)

    def summary(self, text: str) -> None:
        """Set the line printed at the end of the stage."""
        self.summary_line = text

    def at(self, part: str, position: str) -> None:
        """Set the position of one of the parts that run side by side: `ease, setting 2 of 4`."""
        self.raise_failure()
        self._parts[part] = position
        self.progress = "; ".join(f"{name}, {place}" for name, place in list(self._parts.items()))

    def ended(self, part: str) -> None:
        """Leave a part out of the progress from now on."""
        self._parts.pop(part, None)

    def raise_failure(self) -> None:
        """Raise the exception of a part that runs beside this thread, if one failed."""
        if self.failures:
            raise self.failures[0]

    @contextlib.contextmanager
    def counted(self, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """Yield a function that takes numbers of finished units (`users`); progress bar and heartbeat show their sum."""
        from tqdm import tqdm

        done = 0
        self.progress = f"0 of {total:,} {unit}"
        with tqdm(
            total=total, unit=unit, desc=self.stage_folder.name, disable=not self.show_progress, leave=False
        ) as bar:

            def advance(number: int) -> None:
                nonlocal done
                done += number
                bar.update(number)
                self.progress = f"{done:,} of {total:,} {unit}"

            yield advance

    def epoch(self, values: Mapping[str, float], epoch: int) -> None:
        """Log the metrics of an epoch before the stage ends; the heartbeat shows loss and NDCG@10."""
        shown = [
            f"{name} {value:.4f}" for name, value in values.items() if name.endswith(("loss", "ndcg@10"))
        ]
        self.raise_failure()
        self.progress = f"epoch {epoch} ({', '.join(shown)})"
        self.live.metrics(values, epoch)

    def bundle(self) -> Path:
        """Verified folder of the bundle that `score.model` names."""
        if self.model is None:
            return self.inputs["publish"] / "bundle"
        from pipeline.serving import bundle_cache
        from pipeline.serving.bundle import read_description

        folder = bundle_cache.bundle_folder(self.config, self.model)
        read_description(folder, verify=True)
        return folder

    @cached_property
    def dataset(self) -> "Dataset":
        """Features artifact, opened once."""
        from pipeline.dataset.dataset import Dataset

        return Dataset.open(self.inputs["features"])

    @cached_property
    def protocol(self) -> "Protocol":
        """Evaluation protocol, resolved on the dataset."""
        from pipeline.dataset.protocol import Protocol

        return Protocol.of(self.config, self.dataset)

    def trainer(
        self,
        *,
        encoder: "EncoderSettings | None" = None,
        train: "TrainSettings | None" = None,
        reads_dislikes: bool = True,
    ) -> "Trainer":
        """Trainer with checkpoints in the workspace and metrics logged to this stage's run."""
        from pipeline.modelling.trainer import Trainer

        return Trainer(
            self.config,
            self.dataset,
            self.folder / "checkpoints",
            encoder=encoder,
            train=train,
            reads_dislikes=reads_dislikes,
            on_epoch=self.epoch,
            log=self.track.metric,
            show_progress=self.show_progress,
        )
