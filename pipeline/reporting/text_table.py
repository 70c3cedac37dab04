"""The table of an evaluation as text: every system beside the model, with intervals and verdicts."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.sections import MODEL


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines, columns padded to their widest cell."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def as_text(report: dict[str, Any]) -> str:
    """What metrics.json says: targets, a row per system (the best baseline first), what is apart, rolling cuts."""
    metrics = report["metrics"]
    shown = _shown(metrics[MODEL])
    ordered = [MODEL, *sorted(report["paired"], key=lambda name: -metrics[name][shown[0]])]
    rows = [["", *shown, f"the model on {shown[0]}"]]
    for name in ordered:
        ends = report["intervals"][name]
        cells = [f"{metrics[name][metric]:.4f}{_interval(ends.get(metric))}" for metric in shown]
        rows.append([name, *cells, _verdict(report["paired"].get(name, {}).get(shown[0]))])
    masked = "masked" if report["exclude_seen"] else "not masked"
    about = (
        f"{report['targets']:,} targets of {report['users']:,} users, {report['protocol']}, all {report['num_items']:,} items "
        f"ranked, seen ones {masked}; 95 % intervals, bootstrap over users"
    )
    lines = [
        about,
        "",
        aligned(rows),
    ]
    lines += [f"{name}: not there, {why}" for name, why in report["not_applicable"].items()]
    return "\n".join([*lines, *_apart(report, shown[0]), *_rolling(report, ordered, shown[0])])


def _shown(values: dict[str, float]) -> list[str]:
    """The columns: at the shortest list length the metrics of ranks, then those of lists; NDCG at the longest."""
    lengths = sorted({int(name.rpartition("@")[2]) for name in values})
    short = lengths[0]
    wanted = [f"{name}@{short}" for name in ("ndcg", "hit_rate", "mrr", "user_ndcg")]
    wanted += [
        f"ndcg@{lengths[-1]}",
        *(f"{name}@{short}" for name in ("coverage", "novelty", "popularity_share")),
    ]
    return [name for name in dict.fromkeys(wanted) if name in values]


def _interval(ends: Sequence[float] | None) -> str:
    return f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends is not None else ""


def _verdict(paired: dict[str, Any] | None) -> str:
    if paired is None:
        return ""
    return (
        f"{paired['verdict']} ({paired['difference']:+.4f} [{paired['low']:+.4f}, {paired['high']:+.4f}],"
        f" p {paired['p_bootstrap_holm']:.2g})"
    )


def _apart(report: dict[str, Any], metric: str) -> list[str]:
    """What is counted and reported apart, and what leave-one-out leaks by construction."""
    apart, lines = report["apart"], []
    cold, unseen = apart["no_history"], apart["unknown_item"]
    if cold["targets"]:
        values = ", ".join(f"{name} {values[metric]:.4f}" for name, values in cold["metrics"].items())
        counted = "counted above" if cold["included"] else "not counted above"
        lines.append(f"{cold['targets']:,} targets without a history ({counted}): {metric} {values}")
    if unseen["targets"]:
        counted = "counted above" if unseen["included"] else "not counted above"
        lines.append(
            f"{unseen['targets']:,} targets on items unseen in training ({counted}); with them {metric} of the model"
            f" {unseen['metrics_with_them'][MODEL][metric]:.4f}"
        )
    leaks = report["leaks"]["by_construction"]
    lines += [
        f"leaked by the protocol: {name.replace('_', ' ')} {share:.1%}" for name, share in leaks.items()
    ]
    return lines


def _rolling(report: dict[str, Any], ordered: Sequence[str], metric: str) -> list[str]:
    """The metric at each cut, then mean and spread."""
    rolling = report.get("rolling")
    if rolling is None:
        return []
    cuts = rolling["cuts"]
    rows = [[f"{metric}, test from", *((cut["test_from"] or "")[:10] for cut in cuts), "mean", "spread"]]
    for name in ordered:
        if name in rolling["mean"]:
            values = [f"{cut['metrics'][name][metric]:.4f}" for cut in cuts]
            rows.append(
                [
                    name,
                    *values,
                    f"{rolling['mean'][name][metric]:.4f}",
                    f"{rolling['spread'][name][metric]:.4f}",
                ]
            )
    return ["", aligned(rows)]
