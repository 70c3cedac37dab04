"""Command line: parse, load the configuration, call stages; heavy imports stand where they are used."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from features.printable import printable_lines
from pipeline.credentials import masked
from pipeline.errors import TRACEBACK, ConfigError, LookbackError, command_line, one_line

STAGES_OF_ALL = (
    "ingest",
    "features",
    "train",
    "index",
    "rank",
    "baselines",
    "evaluate",
    "publish",
    "monitor",
    "score",
    "report",
)
STAGE_NAMES = (*STAGES_OF_ALL, "similar")


class _Configured(click.Command):
    """Command with --config and --set that receives the loaded configuration as `config`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        file = "Configuration: a TOML file, or the name of a shipped one, such as demo."
        key = "Override a key, such as train.epochs=3."
        self.params += [
            click.Option(["--config", "config_path"], required=True, metavar="FILE", help=file),
            click.Option(["--set", "overrides"], multiple=True, metavar="KEY=VALUE", help=key),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, then load the configuration."""
        rest = super().parse_args(ctx, args)
        from pipeline.config import load_config
        from pipeline.configs import find

        overrides = ctx.params.pop("overrides")
        at = ctx.params.pop("at", None)
        if at is not None:
            overrides = (*overrides, f"score.at={json.dumps(at)}")
        ctx.params["config"] = load_config(find(ctx.params.pop("config_path")), overrides)
        return rest


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lookback")
def cli() -> None:
    """Sequential recommendations from a log of user-item events."""


@cli.command(cls=_Configured)
@click.argument("stages", nargs=-1, required=True, type=click.Choice([*STAGE_NAMES, "all"]))
@click.option("--force", is_flag=True, help="Rebuild the named stages even if they are up to date.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option(
    "--fail-on-alert", is_flag=True, help="End with exit code 3 where the stage monitor has alerts."
)
def run(config: Any, stages: tuple[str, ...], force: bool, as_json: bool, fail_on_alert: bool) -> None:
    """Run STAGES and the stages they need (all: every stage but similar)."""
    from pipeline.orchestration.process_group import is_leader
    from pipeline.orchestration.runner import bring_up_to_date, ended_by_sigterm, read_databases

    names = [name for stage in stages for name in (STAGES_OF_ALL if stage == "all" else (stage,))]
    if fail_on_alert and "monitor" not in names:
        raise ConfigError("run --fail-on-alert: expected the stage monitor among the stages")
    say = (lambda _: None) if as_json else _say
    with is_leader() as leads:
        if not leads:
            return
        with ended_by_sigterm():
            read_databases(config, names, force=force)
            summaries = bring_up_to_date(
                config, names, force=force, show_progress=sys.stderr.isatty(), say=say
            )
    _print_ended(names, summaries, say, as_json=as_json)
    _deliver_live(config, summaries, say)
    watched = [done for done in summaries if done["stage"] == "monitor"]
    if fail_on_alert and not (watched and not watched[0]["alerts"]):
        sys.exit(3)


def _print_ended(names: list[str], summaries: list[Any], say: Any, *, as_json: bool) -> None:
    """Print the metrics and whether lists are live, or with `as_json` the summaries."""
    scored = [done for done in summaries if done["stage"] == "score"]
    live = {"is_live": scored[0]["is_live"], "live": scored[0]["live"]} if scored else {}
    if as_json:
        named = next((done for done in reversed(summaries) if done["stage"] == names[-1]), summaries[-1])
        print(json.dumps({**named, **live, "stages": summaries}))
        return
    if "evaluate" in names:
        _print_evaluation(next(Path(done["folder"]) for done in summaries if done["stage"] == "evaluate"))
    for done in scored:
        say(done["live"])


def _say(line: str) -> None:
    print(printable_lines(line), flush=True)


def _print_evaluation(folder: Path) -> None:
    """Print the metrics of the model and every baseline."""
    from pipeline.evaluation.report import EvaluationReport
    from pipeline.reporting.text_table import as_text

    print(f"\n{as_text(EvaluationReport.load(folder))}")


@cli.command(cls=_Configured)
@click.argument("stage", type=click.Choice(STAGE_NAMES))
def path(config: Any, stage: str) -> None:
    """Print the folder of STAGE's up-to-date artifact."""
    from pipeline.orchestration.graph import finished_folder

    print(finished_folder(config, stage))


@cli.command(cls=_Configured)
@click.option("--user", help="User id in the log.")
@click.option(
    "--history",
    help="Item ids, oldest first, separated by commas; or a JSON list, for ids that contain commas.",
)
@click.option(
    "-k", "k", default=10, show_default=True, type=click.IntRange(min=1), help="List length, in items."
)
@click.option("--at", metavar="TIME", help="Time of the request, an ISO time; sets the key score.at.")
@click.option(
    "--without",
    multiple=True,
    metavar="ITEM",
    help="Show what would change without the history's events on this item; repeatable.",
)
@click.option(
    "--with",
    "added",
    multiple=True,
    metavar="ITEM",
    help="Show what would change with this item as the newest event; repeatable, in their order.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def recommend(
    config: Any,
    user: str | None,
    history: str | None,
    k: int,
    without: tuple[str, ...],
    added: tuple[str, ...],
    as_json: bool,
) -> None:
    """Recommend items for a known user or a history, with the reasons of each."""
    from pipeline.commands.changed_history import Change
    from pipeline.commands.recommend import recommend_one

    if (user is None) == (history is None):
        raise ConfigError(
            "recommend: received "
            + ("neither" if user is None else "both")
            + ", expected one of --user and --history"
        )
    recommend_one(config, user, history, k, Change(without, added), as_json=as_json)


@cli.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    help="Configuration with the tracking server and experiment of the runs.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--html", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page to this file too."
)
@click.option(
    "--lists",
    is_flag=True,
    help="Compare the delivered lists of two versions (3, models:/NAME/3, models:/NAME@ALIAS) or score folders instead.",
)
def compare(
    runs: tuple[str, ...],
    config_path: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    html: Path | None,
    lists: bool,
) -> None:
    """Compare RUNS (MLflow run ids or names): metrics, paired differences, intervals; logged as a run.

    With --lists: two versions or score folders, by what their users would get.
    """
    from pipeline.config import load_config
    from pipeline.configs import find

    config = load_config(find(config_path), overrides) if config_path is not None else None
    if lists:
        from pipeline.commands.compare_lists import compare_lists

        compare_lists(config, runs, as_json=as_json, html=html)
        return
    from pipeline.commands.compare import compare_runs

    compare_runs(config, runs, as_json=as_json, html=html)


@cli.command(cls=_Configured)
@click.option(
    "--users", type=click.IntRange(min=2), help="Users of both arms; by default those of the test nights."
)
@click.option("--days", type=float, help="Duration, in days; by default that of the test nights.")
@click.option("--effect", type=float, help="Difference of the metric for which to show the users needed.")
@click.option("--share", default=0.5, show_default=True, help="Share of the users in one of the two arms.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def power(
    config: Any, users: int | None, days: float | None, effect: float | None, share: float, as_json: bool
) -> None:
    """Print the smallest effect that an experiment on users can show, and the users that effects need."""
    from pipeline.commands.power import power as plan

    plan(config, users=users, days=days, effect=effect, share=share, as_json=as_json)


@cli.command(cls=_Configured)
@click.option(
    "--trials",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Total number of trials, earlier ones included.",
)
def tune(config: Any, trials: int) -> None:
    """Search hyper-parameters on validation NDCG@10."""
    from models.training.distributed import launched
    from pipeline.commands.tune import tune as search

    if launched() > 1:
        raise ConfigError(f"tune: received {launched()} processes, expected one: start it without torchrun")
    search(config, trials)


@cli.command(cls=_Configured)
@click.argument("version")
def promote(config: Any, version: str) -> None:
    """Move the alias `champion` to VERSION by hand; the version's tags record it.

    VERSION is a number, models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS.
    """
    from pipeline.release.promotion import promote as move

    print(move(config, version))


@cli.command(cls=_Configured)
@click.option(
    "--keep",
    default=2,
    show_default=True,
    type=click.IntRange(min=1),
    help="Newest artifacts to keep per stage.",
)
@click.option(
    "--excluded",
    is_flag=True,
    help="Instead, remove everything not made with the present events.exclude_users, however new.",
)
@click.option("--dry-run", is_flag=True, help="List the removals without removing anything.")
def prune(config: Any, keep: int, excluded: bool, dry_run: bool) -> None:
    """Remove old artifacts; inputs of the champion, the newest run and running stages stay."""
    if excluded:
        from pipeline.commands.erase import prune_excluded

        prune_excluded(config, dry_run=dry_run)
        return
    from pipeline.commands.prune import prune as remove

    remove(config, keep=keep, dry_run=dry_run)


@cli.command("init")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; default: NAME.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object.")
def start(files: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Look into FILE... (a log, tables of items and users) and write a configuration for them."""
    from pipeline.commands.init import init

    init(files, output, as_json=as_json)


@cli.command("config")
@click.argument("section", required=False)
@click.option("--all", "include_experts", is_flag=True, help="Show expert keys too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_keys(section: str | None, include_experts: bool, as_json: bool) -> None:
    """Print the configuration keys, of SECTION or all, with type, unit, default and meaning."""
    from pipeline.config_reference import print_reference

    print_reference(section, include_experts=include_experts, as_json=as_json)


@cli.command(cls=_Configured)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def update(config: Any, as_json: bool) -> None:
    """Run a night with training: judge earlier candidates, train from the champion, score with the champion."""
    from pipeline.commands.update import update as run_night
    from pipeline.orchestration.process_group import is_leader
    from pipeline.orchestration.runner import ended_by_sigterm, read_databases

    say = (lambda _: None) if as_json else _say
    with is_leader() as leads:
        if not leads:
            return
        with ended_by_sigterm():
            read_databases(config, ["ingest"], force=False)
            summaries = run_night(config, show_progress=sys.stderr.isatty(), say=say)
    _print_ended(["score"], summaries, say, as_json=as_json)
    _deliver_live(config, summaries, say)


def _deliver_live(config: Any, summaries: list[Any], say: Any) -> None:
    """Write lists that went live to the table of `[deliver]`, where there is one."""
    if config.deliver is not None and any(done.get("is_live") for done in summaries):
        from pipeline.commands.deliver import deliver as write_to_table

        say(write_to_table(config))


@cli.command(cls=_Configured)
def deliver(config: Any) -> None:
    """Write the live lists to the table of `[deliver]`; `run` does it where a scoring goes live."""
    from pipeline.commands.deliver import deliver as write_to_table

    _say(write_to_table(config))


@cli.command(cls=_Configured)
def data(config: Any) -> None:
    """Download the public data set of the configuration."""
    from pipeline.commands.download import download

    print(download(config))


@cli.command(cls=_Configured)
@click.option("--port", type=click.IntRange(1, 65535), help="Port, instead of tracking.port.")
def ui(config: Any, port: int | None) -> None:
    """Serve the MLflow UI on 127.0.0.1."""
    from pipeline.orchestration.parent_run import end_abandoned
    from pipeline.orchestration.saved_views import saved_views
    from pipeline.tracking import ui as server

    end_abandoned(config)
    server.ui(port or config.tracking.port, config.tracking.uri, config.name, saved_views(config))


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        where = error.filename or "while writing"
        return f"no space left on the device ({where}); free some and run again; partly written files are never used"
    return f"{error.filename or 'a file'}: {error.strerror or error}; check that the folder (data_dir?) exists and is writable"


def main() -> None:
    """Run the command line; user errors end as one message, never a traceback."""
    _let_waiting_threads_sleep()
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        again = command_line(sys.argv[1:])
        _fail(f"stopped; what is finished is kept, and the same command goes on from there: {again}", 130)
    except LookbackError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(_explain(error), 1)
    except (ValueError, MemoryError) as error:
        _fail(str(error) or "out of memory", 1)
    except _errors_of("torch", "OutOfMemoryError") as error:
        _fail(
            f"{str(error).partition('. ')[0]}: free the GPU, or set CUDA_VISIBLE_DEVICES='' to use the CPU", 1
        )
    except _errors_of("polars.exceptions", "PolarsError") as error:
        _fail(f"a table cannot be read or computed: {error}", 1)
    except Exception as error:  # noqa: BLE001  (one message, never a traceback)
        _fail(one_line(error), 1)


def _let_waiting_threads_sleep() -> None:
    """OpenMP's idle threads give up their core after microseconds unless the environment says otherwise.

    By default they spin for milliseconds: nothing is gained on free cores, and beside other work a training takes five times as
    long (tests/benchmarks/results/2026-11-30-threads.md). Read by libgomp when torch, FAISS and scikit-learn load it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _errors_of(module: str, name: str) -> tuple[type[Exception], ...]:
    """A library's exceptions, where a command has imported it."""
    library = sys.modules.get(module)
    return (getattr(library, name),) if library is not None else ()


def _fail(message: str, code: int) -> None:
    if os.environ.get(TRACEBACK):
        raise  # noqa: PLE0704  (called while an exception is handled)
    print(f"lookback: {printable_lines(masked(message))}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
