"""Text table of an evaluation: the model and every baseline, with intervals and verdicts."""

from collections.abc import Iterable, Sequence

from models.evaluation.bootstrap import PairedDifference
from pipeline.evaluation import target_words
from pipeline.evaluation.report import OFF_POLICY_SHOWN, ColdTargets, EvaluationReport
from pipeline.sections import MODEL


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines, columns padded to their widest cell."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def as_text(report: EvaluationReport) -> str:
    """Targets and cautions, a row per system (the best baseline first), other kinds, repeats, cold targets, rolling cuts."""
    columns = _columns(report)
    first = columns[0]
    systems = [MODEL, *report.best_baselines(first)]
    rows = [["", *columns, f"the model on {first}"]]
    for name in systems:
        cells = [str(report.value(name, metric)) for metric in columns]
        rows.append([name, *cells, "" if name == MODEL else _verdict(report.paired(name, first))])
    masked = "masked" if report.exclude_seen else "not masked"
    about = (
        f"{target_words.tested(report)}, {report.protocol}, all {report.num_items:,} items "
        f"ranked, seen ones {masked}, ties {report.ties}; 95 % intervals, bootstrap over users"
    )
    reasons = target_words.left_out(report.targets_of_a_user, report.targets_left_out)
    lines = [about, *([f"left out: {reasons}"] if reasons else [])]
    lines += [*(f"caution: {sentence}" for sentence in report.cautions), "", aligned(rows)]
    if report.dislikes is not None:
        lines += [target_words.disliked(report.dislikes)]
    lines += [f"{name}: not evaluated, {reason}" for name, reason in report.not_applicable.items()]
    lines += [*_subsets(report, systems), *_among_candidates(report, systems), *_kinds(report, systems)]
    lines += [] if report.stale is None else ["", *report.stale.sentences]
    lines += [] if report.orders is None else ["", report.orders.sentence]
    lines += _off_policy(report, systems)
    return "\n".join([*lines, *_cold_targets(report, first), *_rolling(report, systems, first)])


def _columns(report: EvaluationReport) -> list[str]:
    """Metrics of ranks, then of lists, at the shortest list length; NDCG at the longest."""
    short, *_, long = (*report.list_lengths, report.list_lengths[-1])
    is_nightly = target_words.is_nightly(report.targets_of_a_user)
    chosen = ("recall", "precision", "mrr") if is_nightly else ("mrr", "user_ndcg")
    of_ranks = [f"{name}@{short}" for name in ("ndcg", "hit_rate", *chosen)]
    of_lists = [f"{name}@{short}" for name in ("coverage", "novelty", "popularity_share")]
    columns = dict.fromkeys(
        [*of_ranks, f"ndcg@{long}", f"dislike_rate@{short}", f"utility@{short}", *of_lists]
    )
    return [name for name in columns if name in report.metric_names]


def _verdict(paired: PairedDifference) -> str:
    return (
        f"{paired.verdict} ({paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}],"
        f" p {paired.p_bootstrap_holm:.2g})"
    )


def _subsets(report: EvaluationReport, systems: Sequence[str]) -> list[str]:
    """Lines on the metrics of repeats and of new items."""
    subsets = report.subsets
    if not subsets:
        return []
    names = _short_columns(report)
    head = [f"{part}, {name}" for part in subsets for name in names]
    rows = [["", *head]]
    for system in systems:
        own = [subset.value(system, name) for subset in subsets.values() for name in names]
        rows.append([system, *map(str, own)])
    counts = ", ".join(f"{subset.targets:,} {words}" for words, subset in target_words.parts(report).items())
    return ["", f"apart: {counts}", "", aligned(rows)]


def _among_candidates(report: EvaluationReport, systems: Sequence[str]) -> list[str]:
    """Lines on the metrics among users' own candidates."""
    among = report.among_candidates
    if among is None:
        return []
    names = [f"{metric}@{report.list_lengths[0]}" for metric in ("mrr", "ndcg", "hit_rate")]
    rows = [["", *names]]
    rows += [
        [system, *(str(among.value(system, name)) for name in names)]
        for system in systems
        if system in among.metrics
    ]
    return ["", target_words.among_candidates(among), "", aligned(rows)]


def _kinds(report: EvaluationReport, systems: Sequence[str]) -> list[str]:
    """Lines on the metrics by each kind of targets."""
    if report.by_targets is None:
        return []
    names = _short_columns(report)
    rows = [["", *(f"{kind}, {name}" for kind in report.by_targets for name in names)]]
    for system in systems:
        own = [values.get(system, {}).get(name) for values in report.by_targets.values() for name in names]
        rows.append([system, *("–" if value is None else f"{value:.4f}" for value in own)])
    return ["", "by kind of targets, the first is the headline", "", aligned(rows)]


def _short_columns(report: EvaluationReport) -> list[str]:
    """NDCG and hit rate at the shortest list length."""
    names = [f"{metric}@{report.list_lengths[0]}" for metric in ("ndcg", "hit_rate")]
    return [name for name in names if name in report.metric_names]


def _off_policy(report: EvaluationReport, systems: Sequence[str]) -> list[str]:
    """Lines on the reactions per list that each system would have had."""
    if report.off_policy_lists is None:
        return []
    rows = [["would have had", *OFF_POLICY_SHOWN.values()]]
    found = report.off_policy or {}
    rows += [
        [name, *(str(found[name][own]) for own in OFF_POLICY_SHOWN)] for name in systems if name in found
    ]
    return ["", target_words.exposed(report.off_policy_lists), "", aligned(rows)]


def _cold_targets(report: EvaluationReport, metric: str) -> list[str]:
    """Lines on cold targets, and on leaks of leave-one-out by construction."""
    cold, unknown = report.cold_targets["no_history"], report.cold_targets["unknown_item"]
    is_nightly = target_words.is_nightly(report.targets_of_a_user)
    lines = []
    if cold.targets:
        values = ", ".join(f"{name} {values[metric]:.4f}" for name, values in cold.metrics.items())
        whose = "items taken by users without a history" if is_nightly else "targets without a history"
        lines.append(f"{cold.targets:,} {whose} ({_counted(cold)}): {metric} {values}")
    if unknown.targets and unknown.metrics_with_them is not None:
        of_model = f"; with them {metric} of the model {unknown.metrics_with_them[MODEL][metric]:.4f}"
        lines.append(
            f"{unknown.targets:,} {'items taken' if is_nightly else 'targets on items'} unseen in training ({_counted(unknown)})"
            f"{'' if unknown.included else of_model}"
        )
    leaks = report.leaks.by_construction
    return lines + [
        f"leaked by the protocol: {name.replace('_', ' ')} {share:.1%}" for name, share in leaks.items()
    ]


def _counted(cold: ColdTargets) -> str:
    return "counted above" if cold.included else "not counted above"


def _rolling(report: EvaluationReport, systems: Sequence[str], metric: str) -> list[str]:
    """Lines on the metric at each cut, with mean and spread."""
    rolling = report.rolling
    if rolling is None:
        return []
    rows = [[f"{metric}, test from", *((cut.test_from or "")[:10] for cut in rolling.cuts), "mean", "spread"]]
    for name in systems:
        if name in rolling.mean:
            values = [*(cut.metrics[name] for cut in rolling.cuts), rolling.mean[name], rolling.spread[name]]
            rows.append([name, *(f"{value[metric]:.4f}" for value in values)])
    return ["", aligned(rows)]
