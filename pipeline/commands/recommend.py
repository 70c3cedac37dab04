"""`lookback recommend`: recommendations for one user or history, with the reasons of each."""

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import numpy as np
import polars as pl

from features.histories.vocabulary import Vocabulary
from features.printable import printable
from models.encoder.encoder import with_request_time
from models.histories import Histories, Int64, histories_from_lists
from models.recommendation.answer import Answer, Outcomes, ReasonMethod
from models.recommendation.rules import Rules
from pipeline.commands.changed_history import Change, Difference
from pipeline.config import Config
from pipeline.dataset.dataset import rows
from pipeline.dataset.protocol import excludes_seen
from pipeline.errors import LookbackError
from pipeline.modelling.second_stage import is_timed
from pipeline.monitoring import earlier_lists
from pipeline.orchestration.graph import Pipeline, resolve
from pipeline.serving import (
    new_item_catalogue,
    outcome_order,
    output_table,
    popularity_fallback,
    proven_reasons,
    user_rules,
)
from pipeline.serving.assignment import keys_of
from pipeline.serving.bundle import Bundle
from pipeline.serving.business_rules import rules_of
from pipeline.serving.current_log import Log, with_current_log
from pipeline.serving.request import Request
from pipeline.serving.user_rules import UserRules

_ONE = np.zeros(1, np.int64)
LONGEST_NAME = 80
"""Characters of a title or id in a line."""


@dataclass(frozen=True)
class Recommendations:
    """Recommendations of one user or history."""

    user_id: str | None
    history_length: int
    """Interactions with items known to the model."""
    unknown_items: int
    """Interactions with unknown items."""
    recommendations: list[dict[str, Any]]
    """Best first: rank, item_id, title, score (None: a pin that the list did not have), probability where calibrated, columns of
    outcomes, because (item_id, title and weight), and proven where a proof was sought."""
    probability_of: str | None
    """Event that `probability` is the probability of; None without probabilities."""


@dataclass(frozen=True)
class _Opened:
    """Bundle as it answers a request."""

    bundle: Bundle
    request: Request
    log: Log | None
    """Up-to-date log; None: the bundle's own histories answer."""

    def excludes_seen(self, config: Config) -> bool:
        """`score.exclude_seen`, resolved on the log, or else as the bundle recorded it."""
        setting = config.score.exclude_seen
        if self.log is not None:
            return excludes_seen(setting, self.log.dataset)
        return self.bundle.excludes_seen if setting == "auto" else setting


@dataclass(frozen=True)
class _Asked:
    """History of a user, or one typed in, and what its list follows from besides."""

    config: Config
    bundle: Bundle
    user: str | None
    known: Histories
    """[1] without unknown items"""
    num_unknown: int
    segment: Int64
    """[1]"""
    rules: Rules
    of_user: UserRules | None
    time: int
    """Of the request, in microseconds since the epoch"""

    def answer(self, known: Histories, k: int, because: ReasonMethod | None) -> Answer:
        """List of k items for a history [1]."""
        answer = self.bundle.engine.answer(
            known,
            k,
            self.rules,
            keys=None if self.user is None else keys_of(pl.Series([self.user])),
            segment=self.segment,
            because=because,
            because_items=self.config.score.because_items,
        )
        return answer if self.of_user is None else self.of_user.pinned(_ONE, known, answer, self.rules)[0]

    def recommended(self, k: int) -> Recommendations:
        """List of k items, with reasons."""
        is_proven = proven_reasons.are_sought(self.config.score)
        answer = self.answer(self.known, k, "proven" if is_proven else "exact")
        has_probability = self.bundle.probability is not None and not answer.cold[0]
        return Recommendations(
            self.user,
            int(self.known.lengths[0]),
            self.num_unknown,
            _rows(self.bundle, answer, self.time),
            self.bundle.probability_of if has_probability else None,
        )


def recommend_one(
    config: Config, user: str | None, history: str | None, k: int, change: Change, *, as_json: bool
) -> None:
    """Print the recommendations of `recommend`, and beside them those after a change of the history, if any.

    history: item ids separated by commas, or a JSON list.
    """
    asked = _asked(config, user, None if history is None else _listed(history))
    if not change:
        answer = asked.recommended(k)
        click.echo(json.dumps(asdict(answer)) if as_json else _text(answer))
        return
    changed = change.applied(asked.known, asked.bundle.items, asked.time)
    answer = asked.recommended(k)
    other = _rows(asked.bundle, asked.answer(changed, k, None), asked.time)
    difference = Difference(change, answer.recommendations, other)
    if as_json:
        click.echo(json.dumps(asdict(answer) | {"changed": difference.as_json()}))
    else:
        click.echo(f"{_events_of(answer)}\n{difference.as_text()}")


def recommend(config: Config, user: str | None, history: Sequence[str] | None, k: int) -> Recommendations:
    """Recommend k items for a user of the log, or for a history of item ids, oldest first, by the rules of `[score]`.

    Raises LookbackError for a missing model, an unknown user, a history without a known item, `score.at` before the log, or
    reasons that cannot be proven.
    """
    return _asked(config, user, history).recommended(k)


def _asked(config: Config, user: str | None, history: Sequence[str] | None) -> _Asked:
    """The request of `recommend`."""
    pipeline = resolve(config, ["score"])
    opened = _opened(pipeline)
    bundle = outcome_order.with_utility(opened.bundle, config.score.order, config.utility)
    request = opened.request
    outcome_order.check_order(bundle, config.score.order, config.utility)
    proven_reasons.check(bundle, config.score)
    known, unknown = (
        _typed_in(opened, history) if history is not None else _of_user(pipeline, opened, str(user))
    )
    of_user = None
    if user is not None and history is None:
        known = _with_shown(pipeline, opened, known, user)
        of_user = user_rules.of_user(config.score, user, bundle.items)
        known = of_user.applied(_ONE, known)
    exclude_seen = opened.excludes_seen(config)
    rules, _ = rules_of(
        config.score,
        bundle.items,
        request.time,
        config.seed,
        exclude_seen=exclude_seen,
        timezone=config.events.timezone,
    )
    segment = _segment(pipeline, bundle, user)
    return _Asked(config, bundle, user, known, unknown, segment, rules, of_user, request.time)


def _bundle(pipeline: Pipeline) -> Bundle:
    if pipeline.model is not None:
        from pipeline.serving import bundle_cache

        return Bundle.open(bundle_cache.bundle_folder(pipeline.config, pipeline.model))
    publish = pipeline.nodes["publish"].artifact
    if not publish.is_complete():
        raise LookbackError(
            "recommend: this configuration has published no model; build one with: "
            f"{pipeline.config.command('run', 'publish')}; or use the champion with --set score.model=champion"
        )
    return Bundle.open(publish.folder / "bundle")


def _opened(pipeline: Pipeline) -> _Opened:
    """The bundle as scoring sees it with the up-to-date log, or else with what was new when it was made."""
    bundle, settings, timed = _bundle(pipeline), pipeline.config.score, is_timed(pipeline.config)
    timezone = pipeline.config.events.timezone
    features, ingest = (pipeline.nodes[name].artifact for name in ("features", "ingest"))
    if features.is_complete() and ingest.is_complete():
        features.verify()
        ingest.verify(("items.parquet", "users.parquet"))
        bundle, log = with_current_log(
            bundle, features.folder, ingest.folder, settings, timed=timed, timezone=timezone
        )
        return _Opened(bundle, log.request, log)
    request = Request.of(settings.at, bundle.newest, timed=timed, timezone=timezone)
    bundle = new_item_catalogue.with_catalogue(bundle) if settings.new_items else bundle
    return _Opened(bundle.as_of(request), request, None)


def _segment(pipeline: Pipeline, bundle: Bundle, user: str | None) -> Int64:
    """[1] popularity segment of a user, by the up-to-date users' table."""
    column = bundle.segment_column
    table = pipeline.nodes["ingest"].artifact.folder / "users.parquet"
    if user is None or column is None or not table.exists():
        return np.zeros(1, np.int64)
    return bundle.popularity.codes(popularity_fallback.segment_of(table, column, pl.Series([user])))


def _typed_in(opened: _Opened, history: Sequence[str]) -> tuple[Histories, int]:
    known, unknown = opened.bundle.from_ids([list(history)], opened.request.time)
    if not known.lengths[0]:
        near = ", ".join(map(repr, map(str, opened.bundle.items.ids.head(3))))
        raise LookbackError(
            f"--history: received {','.join(history)!r}, without an item that the model knows; expected item ids such as {near}, "
            "separated by commas, or a JSON list of them"
        )
    return known, unknown


def _listed(history: str) -> list[str]:
    """Parse item ids: a JSON list as it is, or a comma-separated text without surrounding blanks."""
    with contextlib.suppress(ValueError):
        listed = json.loads(history)
        if isinstance(listed, list):
            return [str(item) for item in listed if item is not None]
    return [item.strip() for item in history.split(",") if item.strip()]


def _of_user(pipeline: Pipeline, opened: _Opened, user: str) -> tuple[Histories, int]:
    """Known history up to the request and its number of unknown items; empty for listed users.

    From the up-to-date log, or else the bundle.
    """
    bundle, log, request = opened.bundle, opened.log, opened.request
    if log is None:
        return bundle.histories_at(request).select(_index(bundle.users, user)), 0
    users = Vocabulary(log.users, 0)
    if users.encode_known(pl.Series([user]))[1] and _is_listed(pipeline, user):
        return with_request_time(histories_from_lists([[]]), request.time), 0
    index = _index(users, user)
    whole = rows(log.histories, log.histories.offsets[index], log.ends[index]).compact()
    whole = replace(whole, user=index)
    known = whole.with_types(log.types).translate(log.items)
    known = with_request_time(known, request.time)
    return known, int(whole.lengths[0] - known.lengths[0])


def _with_shown(pipeline: Pipeline, opened: _Opened, known: Histories, user: str) -> Histories:
    """The history of a user with the items that `score.max_shown` leaves out, and what the ranker reads of exposures.

    Without an up-to-date log a line on stderr says that nothing is left out.
    """
    config, log = pipeline.config, opened.log
    if log is None:
        if config.score.max_shown:
            text = "score.max_shown: there is no up-to-date log of what users were shown: nothing is left out"
            print(text, file=sys.stderr, flush=True)
        return known
    typed_in = pl.Series([user])
    own, num_unknown = Vocabulary(log.users, 0).encode_known(typed_in, unknown=-1)
    index = own.astype(np.int64)
    rule = earlier_lists.not_again(config, pipeline.nodes["features"].artifact.folder)
    if rule is not None:
        ids = typed_in.cast(log.users.dtype) if num_unknown else log.users.gather(index)
        known = replace(known, left_out=log.shown(rule, opened.bundle).left_out(ids, index, known))
    return log.with_exposures(known, index, opened.bundle)


def _is_listed(pipeline: Pipeline, user: str) -> bool:
    """Whether the users' table lists the user."""
    table = pipeline.nodes["ingest"].artifact.folder / "users.parquet"
    return table.exists() and user in pl.read_parquet(table, columns=["user_id"])["user_id"].cast(pl.String)


def _index(users: Vocabulary, user: str) -> Any:
    index, num_unknown = users.encode_known(pl.Series([user]), unknown=-1)
    if num_unknown:
        near = ", ".join(map(str, users.ids.head(3)))
        raise LookbackError(
            f"--user: received {user!r}, who is neither in the log nor in the users' table; expected a user such as {near}"
        )
    return np.asarray(index)


def _rows(bundle: Bundle, answer: Answer, time: int) -> list[dict[str, Any]]:
    titles = bundle.titles.to_list()
    given = answer.item_index[0] > 0
    probability = None if answer.cold[0] else bundle.probability_at(time)
    ids = bundle.items.decode(answer.item_index[0][given]).to_list()
    listed = []
    for place, item in enumerate(ids):
        because = []
        if answer.because is not None:
            pairs = zip(answer.because.item_index[0, place], answer.because.weight[0, place], strict=True)
            because = [
                {"item_id": bundle.items.ids[index - 1], "title": titles[index - 1], "weight": float(weight)}
                for index, weight in ((int(index), weight) for index, weight in pairs)
                if index > 0
            ]
        score = answer.score[0, place]
        by_ranker = score if answer.outcomes is None else answer.outcomes.score[0, place]
        likely = {}
        if probability is not None and not np.isnan(by_ranker):
            likely = {"probability": float(probability(by_ranker))}
        row = {"rank": place + 1, "item_id": item, "title": titles[int(answer.item_index[0, place]) - 1]}
        own = (
            {}
            if answer.outcomes is None
            else _outcomes(outcome_order.types_of(bundle), answer.outcomes, place)
        )
        known_score = None if np.isnan(score) else float(score)
        reasons: dict[str, Any] = {"because": because}
        if answer.because is not None and answer.because.proven is not None:
            reasons[output_table.PROVEN] = bool(answer.because.proven[0, place])
        listed.append(row | {"score": known_score} | likely | own | reasons)
    return listed


def _outcomes(types: Sequence[str], predicted: Outcomes, place: int) -> dict[str, float]:
    """Columns of outcomes of a recommendation, as in the output of scoring; none where the ranker did not rank it."""
    values = [*predicted.probability[0, place].tolist()]
    values += [] if predicted.utility is None else [float(predicted.utility[0, place])]
    names = output_table.outcome_columns(types, has_utility=predicted.utility is not None)
    return {name: value for name, value in zip(names, values, strict=True) if not np.isnan(value)}


def _shown(name: Any) -> str:
    """Title or id of an item, in a line."""
    return printable(str(name), LONGEST_NAME)


def _events_of(answer: Recommendations) -> str:
    return f"{answer.history_length} known interactions, {answer.unknown_items} with unknown items"


def _reasons(row: dict[str, Any]) -> str:
    """Reasons of a recommendation in words; empty without any."""
    names = [_shown(reason["title"] or reason["item_id"]) for reason in row["because"]]
    is_proven = row.get(output_table.PROVEN)
    if is_proven:
        return f"not recommended without {proven_reasons.named(names)}"
    weights = [f"({reason['weight']:+.2f})" for reason in row["because"]]
    because = "; ".join(map(" ".join, zip(names, weights, strict=True)))
    return ("" if is_proven is None else "no short reason; ") + f"because of {because}" if because else ""


def _text(answer: Recommendations) -> str:
    lines = [_events_of(answer)]
    if not answer.history_length:
        lines.append("no known interaction: recently popular items")
    if answer.probability_of is not None:
        lines.append(f"probability: that {answer.probability_of}")
    for row in answer.recommendations:
        reasons = _reasons(row)
        title = f"  {_shown(row['title'])}" if row["title"] else ""
        score = "pinned" if row["score"] is None else f"{row['score']:.3f}"
        lines.append(
            f"{row['rank']:>3}  {_shown(row['item_id'])}{title}  {score}"
            + (f", probability {row['probability']:.1%}" if "probability" in row else "")
            + (f"\n       {reasons}" if reasons else "")
        )
    return "\n".join(lines)
