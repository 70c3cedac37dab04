"""Stage train of a configuration on a bare machine, torch and numpy alone: selection and refit, judged by the test's requests.

Where the pipeline is:      python tests/benchmarks/gpu_stage.py --pack CONFIG PACKED [--set KEY=VALUE …]
On the bare machine:        python tests/benchmarks/gpu_stage.py --train PACKED --out OUT [--set model.dim=128 …]
Back where the pipeline is: python tests/benchmarks/gpu_stage.py --stage OUT CONFIG [--set …]

The last one runs stage train with the weights of OUT in place of its own training; with the settings that differ from the
configuration as further --set, so that the artifact's key is that of its settings. Weights travel in half precision.
"""

import argparse
import io
import json
import lzma
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models.device import pick_device  # noqa: E402
from models.encoder.batching import BatchPlan  # noqa: E402
from models.encoder.encoder import Encoder  # noqa: E402
from models.histories import Histories  # noqa: E402
from models.settings.encoder import EncoderSettings  # noqa: E402
from models.settings.training import TrainSettings  # noqa: E402
from models.training.loop import fit  # noqa: E402
from models.training.result import EpochRecord, FitResult  # noqa: E402
from models.training.validation import Validation, validate  # noqa: E402
from tests.benchmarks.gpu_training import FLAT, parsed, read_pieces, show, write_pieces  # noqa: E402

Arrays = dict[str, Any]
REPEATS = [{"id": lzma.FILTER_LZMA2, "preset": 3, "dict_size": 2**27}]
"""Compression that finds an array's repetitions: several sets of rows hold the same events."""


# --- where the pipeline is ---


def pack(config_path: str, out: Path, changes: list[str]) -> None:
    """Histories and targets of a configuration as arrays, the arguments of its training as JSON."""
    from pipeline.config import load_config
    from pipeline.dataset.dataset import Dataset
    from pipeline.dataset.evaluation_targets import targets_of
    from pipeline.dataset.protocol import DAY, HORIZON_DAYS
    from pipeline.modelling.trainer import MINUTE, Trainer, type_weights

    config = load_config(config_path, changes)
    dataset = Dataset.open(built("features", config_path, changes))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, dataset, Path(folder) / "checkpoints")
        arrays: Arrays = {}
        for part in ("selection", "refit"):
            training = dataset.training_rows(with_validation=part == "refit")
            numbering = trainer.numbering(training)
            occurring = dataset.occurring(training)
            arrays |= rows_of(part, training.translate(numbering.new))
            arrays[f"{part}_items"] = numbering.num_items
            judged = trainer._validation(numbering, occurring)
            if part == "refit":
                targets = targets_of(config, dataset, "test", numbering, trained=occurring)
                targets = targets.of_requests(targets.histories.lengths > 0)
                judged = Validation(targets.histories, targets.item, judged.exclude_seen, targets.request)
            arrays |= rows_of(f"{part}_judged", judged.histories)
            request = np.arange(len(judged.target)) if judged.request is None else judged.request
            arrays |= {f"{part}_target": judged.target, f"{part}_request": request}
        arrays["type_weights"] = type_weights(config, dataset.event_types)
        file = io.BytesIO()
        np.savez(file, **arrays)
        (out / "arrays.npz.xz").write_bytes(lzma.compress(file.getvalue(), filters=REPEATS))
        facts = {
            "encoder": asdict(config.model),
            "train": asdict(config.train),
            "num_event_types": len(dataset.event_types),
            "max_length": config.history.max_length,
            "session": trainer._session,
            "horizon": trainer._protocol.horizon or HORIZON_DAYS * DAY,
            "visit_session": round(config.history.session_minutes * MINUTE),
            "seed": config.seed,
            "exclude_seen": judged.exclude_seen,
        }
    (out / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 2**20:.1f} MiB", file=sys.stderr)


def built(stage: str, config_path: str, changes: list[str]) -> Path:
    """Folder of a stage's newest artifact, brought up to date."""
    options = ["--config", config_path, *(part for change in changes for part in ("--set", change))]
    command = [sys.executable, "-m", "pipeline"]
    subprocess.run([*command, "run", stage, *options], check=True, cwd=ROOT, stdout=sys.stderr)
    done = subprocess.run(
        [*command, "path", stage, *options], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return Path(done.stdout.splitlines()[-1])


def rows_of(name: str, histories: Histories) -> Arrays:
    """Arrays of a set of rows, with the events they hold."""
    compact = histories.compact()
    arrays: Arrays = {f"{name}_starts": compact.starts, f"{name}_ends": compact.ends}
    arrays |= {f"{name}_{key}": value for key in FLAT if (value := getattr(compact, key)) is not None}
    if compact.request_time is not None:
        arrays[f"{name}_request_time"] = compact.request_time
    return arrays


def stage(out: Path, config_path: str, changes: list[str]) -> None:
    """Run stage train with the weights that a bare machine left."""
    from pipeline.__main__ import main as lookback
    from pipeline.modelling import trainer

    result = json.loads((out / "result.json").read_text())

    def trained(histories: Histories, **arguments: Any) -> FitResult:
        part = "selection" if arguments["max_steps"] is None else "refit"
        encoder = load_encoder(out, part)
        assert encoder.num_items == arguments["num_items"], (part, encoder.num_items, arguments["num_items"])
        records = [EpochRecord(**record) for record in result[part]["history"]]
        facts = result[part]
        return FitResult(encoder, facts["best_epoch"], facts["best_step"], records, facts["resolved"])

    vars(trainer)["fit"] = trained
    sys.argv = ["lookback", "run", "train", "--config", config_path]
    sys.argv += [part for change in changes for part in ("--set", change)]
    lookback()


# --- on the bare machine ---


def rows_from(arrays: Arrays, name: str) -> Histories:
    """The rows that `rows_of` wrote."""
    flat = {key: arrays.get(f"{name}_{key}") for key in FLAT}
    return Histories(
        **flat,  # type: ignore[arg-type]
        starts=arrays[f"{name}_starts"],
        ends=arrays[f"{name}_ends"],
        request_time=arrays.get(f"{name}_request_time"),
    )


def train(packed: Path, out: Path, changes: list[str]) -> dict[str, Any]:
    """Selection by validation, refit for its steps, NDCG@10 of the test; weights and result.json into `out`."""
    with np.load(io.BytesIO(lzma.decompress((packed / "arrays.npz.xz").read_bytes()))) as file:
        arrays: Arrays = dict(file)
    facts = json.loads((packed / "facts.json").read_text())
    settings = parsed(changes)
    encoder = replace(EncoderSettings(**facts["encoder"]), **of_section("model", settings))
    training = replace(TrainSettings(**facts["train"]), **of_section("train", settings))
    if training.predict != "window":
        facts["horizon"] = 0
    if training.predict != "next":
        facts["session"] = facts["visit_session"]

    def judged(part: str) -> Validation:
        target, request = arrays[f"{part}_target"], arrays[f"{part}_request"]
        return Validation(rows_from(arrays, f"{part}_judged"), target, facts["exclude_seen"], request)

    def run(part: str, validation: Validation | None, max_steps: int | None) -> FitResult:
        return fit(
            rows_from(arrays, part),
            encoder=encoder,
            train=training,
            num_items=int(arrays[f"{part}_items"]),
            num_event_types=facts["num_event_types"],
            max_length=facts["max_length"],
            type_weights=arrays["type_weights"],
            session=facts["session"],
            horizon=facts["horizon"],
            seed=facts["seed"],
            validation=validation,
            max_steps=max_steps,
            on_epoch=show,
        )

    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"changes": changes, "torch": torch.__version__}
    started = time.monotonic()
    best_step = None
    for part in ("selection", "refit") if training.refit_validation else ("selection",):
        validation = judged("selection") if part == "selection" else None
        trained = run(part, validation, None if best_step is None else best_step)
        if part == "selection":
            plan = plan_of(rows_from(arrays, "refit"), training, facts, arrays["type_weights"])
            scale = plan.num_targets / trained.resolved["targets_per_epoch"]
            best_step = max(1, round(trained.best_step * scale))
        result[part] = {
            "best_epoch": trained.best_epoch,
            "best_step": trained.best_step,
            "resolved": trained.resolved,
            "history": [vars(record) for record in trained.history],
        }
        weights = {name: value.half().cpu() for name, value in trained.model.state_dict().items()}
        sizes = [int(arrays[f"{part}_items"]), facts["num_event_types"], facts["max_length"]]
        if "weights" not in settings or settings["weights"]:
            write_pieces({"encoder": asdict(encoder), "sizes": sizes, "model": weights}, out, f"{part}.pt")
        result[part]["seconds"] = round(time.monotonic() - started, 1)
        (out / "result.json").write_text(json.dumps(result, default=str), encoding="utf-8")
    test = judged("refit")
    if training.refit_validation or arrays["selection_items"] == arrays["refit_items"]:
        result["test"] = validate(trained.model, test)
    (out / "result.json").write_text(json.dumps(result, default=str), encoding="utf-8")
    return {
        "validation": max(
            record["validation"]["validation_ndcg@10"] for record in result["selection"]["history"]
        ),
        "best_epoch": result["selection"]["best_epoch"],
        "test": result.get("test"),
        "seconds": round(time.monotonic() - started, 1),
        "device": pick_device().type,
    }


def of_section(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of one section, by their keys in it."""
    return {
        key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")
    }


def plan_of(histories: Histories, train: TrainSettings, facts: Arrays, weights: Any) -> BatchPlan:
    """Batches of a training, for its number of targets."""
    return BatchPlan(
        histories,
        facts["max_length"],
        train.batch_histories,
        weights,
        facts["seed"],
        targets=train.targets,
        predict=train.predict,
        session=facts["session"],
        horizon=facts["horizon"],
    )


def load_encoder(out: Path, part: str) -> Encoder:
    """An encoder that `train` left, in evaluation mode."""
    weights = read_pieces(out, f"{part}.pt")
    model = Encoder(EncoderSettings(**weights["encoder"]), *weights["sizes"])
    model.load_state_dict(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in weights["model"].items()
        }
    )
    return model.eval()


def main() -> None:
    """Pack, train or run the stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", nargs=2, metavar=("CONFIG", "PACKED"))
    parser.add_argument("--train", type=Path, metavar="PACKED")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--stage", nargs=2, metavar=("OUT", "CONFIG"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    if arguments.pack:
        pack(arguments.pack[0], Path(arguments.pack[1]), arguments.set)
    elif arguments.train:
        print(json.dumps(train(arguments.train, arguments.out, arguments.set)))
    elif arguments.stage:
        stage(Path(arguments.stage[0]), arguments.stage[1], arguments.set)
    else:
        parser.error("one of --pack, --train, --stage")


if __name__ == "__main__":
    main()
