"""Words for the targets of an evaluation: user-nights or held-out events, and the reasons why others are left out."""

from collections.abc import Mapping

from pipeline.evaluation.report import (
    AmongCandidates,
    EvaluationReport,
    HeldOutDislikes,
    NightsTested,
    ShownLists,
    SubsetMetrics,
)

OF_USER_NIGHTS = {
    "nothing_taken": "with nothing taken in the horizon",
    "nothing_left": "with every event of the horizon left out",
    "no_history": "without a known history",
    "not_sampled": "of users beyond evaluate.max_requests",
}
"""Reason -> words after the number of user-nights that it leaves out."""
OF_EVENTS = {
    "under_core": "on items under the core filter",
    "dislike": "that are dislikes",
    "not_first": "after their user's first",
    "already_seen": "on items already in the history",
    "other_type": "of other types",
    "taken_again": "on an item taken before in the same horizon",
    "no_history": "of users without a known history",
    "unknown_item": "on items unseen in training",
    "not_sampled": "of users beyond evaluate.max_requests",
}
"""Reason -> words after the number of held-out events that it leaves out."""
OF_LISTS = {
    "without_rank": "without ranks from 1 on",
    "without_propensity": "with a place without a propensity",
    "unfinished": "whose window of reactions ends after the log",
    "outside_test": "begun before or after the test",
    "not_sampled": "of users beyond evaluate.max_requests",
}
"""Reason -> words after the number of exposed lists that it leaves out."""

KINDS = {
    "nightly": "nights",
    "successive": "every held-out event",
    "first": "the first held-out event of each user",
}
"""Kind of targets -> its name for display."""


def is_nightly(kind: str) -> bool:
    """Whether a kind of targets is that of nights."""
    return kind == "nightly"


def unit(kind: str) -> str:
    """Plural of what the metrics average over: user-nights, or held-out events."""
    return "user-nights" if is_nightly(kind) else "held-out events"


def counted(kind: str, number: int, users: int) -> str:
    """`11,398 user-nights of 9,567 users`."""
    return f"{_number(number, unit(kind))} of {_number(users, 'users')}"


def tested(report: EvaluationReport) -> str:
    """Targets of a report: `11,398 user-nights of 9,567 users, 10 nights from 2001-01-15 to 2001-02-11, 7 days each`."""
    text = counted(report.targets_of_a_user, report.targets, report.users)
    if report.targets_of_a_user == "first":
        text += ", the first of each"
    return text if report.nights is None else f"{text}, {nights(report.nights)}"


def nights(tested_nights: NightsTested) -> str:
    """`10 nights from 2001-01-15 to 2001-02-11, 7 days each`; the distance of the nights where it is another."""
    text = number_of_nights(tested_nights.number, tested_nights.first[:10], tested_nights.last[:10])
    text += f", {_days(tested_nights.horizon_days)} each"
    if tested_nights.number > 1 and tested_nights.every_days != tested_nights.horizon_days:
        text += f", one every {_days(tested_nights.every_days)}"
    return text


def number_of_nights(number: int, first: str, last: str) -> str:
    """`10 nights from 2001-01-15 to 2001-02-11`, `1 night of 2001-01-15`."""
    return f"{_number(number, 'nights')} {f'of {first}' if number == 1 else f'from {first} to {last}'}"


def left_out(kind: str, counts: Mapping[str, int]) -> str:
    """Reasons with their counts, `9,311 user-nights with nothing taken in the horizon, 21 events of other types`; "" for none."""
    return ", ".join(_left_out(kind, reason, number) for reason, number in counts.items() if number)


def parts(report: EvaluationReport) -> dict[str, SubsetMetrics]:
    """Words after the number of targets of each subset -> the subset."""
    words = {
        "repeats": "held-out events on items of the history",
        "new": "held-out events on items new to the user",
    }
    if is_nightly(report.targets_of_a_user):
        words = {"repeats": "items taken again", "new": "items taken for the first time"}
    return {words[name]: subset for name, subset in report.subsets.items()}


def among_candidates(among: AmongCandidates) -> str:
    """`among the user's candidates: 120 items taken of 80 users, one of 12.5 candidates on average (30 items were others)`."""
    taken = f"{_number(among.targets, 'items')} taken of {_number(among.users, 'users')}"
    outside = f" ({_number(among.outside, 'items')} taken were none of them)" if among.outside else ""
    return (
        f"among the user's candidates: {taken}, one of {among.candidates:.1f} candidates on average{outside}"
    )


def disliked(dislikes: HeldOutDislikes) -> str:
    """`dislike rate: share of 120 held-out dislikes of 80 users that the list would have shown`, and those left out."""
    text = f"{_number(dislikes.dislikes, 'held-out dislikes')} of {_number(dislikes.users, 'users')}"
    counts = {reason: number for reason, number in dislikes.left_out.items() if reason not in OF_USER_NIGHTS}
    reasons = left_out("successive", counts)
    reasons = f" (left out: {reasons})" if reasons else ""
    return f"dislike rate: share of {text} that the list would have shown{reasons}"


def exposed(lists: ShownLists) -> str:
    """`7 lists of 3 users in the test period, shown with known propensities, had 0.6 reactions each`, and those left out."""
    text = f"{_number(lists.lists, 'lists')} of {_number(lists.users, 'users')} in the test period, shown with known propensities"
    reasons = [
        f"{_number(number, 'lists')} {OF_LISTS[reason]}"
        for reason, number in lists.left_out.items()
        if number
    ]
    left_out = f" (left out: {', '.join(reasons)})" if reasons else ""
    return f"{text}, had {lists.reactions:.3f} reactions each at their first {_number(lists.places, 'places')}{left_out}"


def of_user_nights(kind: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts in the unit of the metrics: of nights those of user-nights, else all."""
    if not is_nightly(kind):
        return dict(counts)
    return {reason: number for reason, number in counts.items() if reason in OF_USER_NIGHTS}


def _left_out(kind: str, reason: str, number: int) -> str:
    if is_nightly(kind) and reason in OF_USER_NIGHTS:
        return f"{_number(number, 'user-nights')} {OF_USER_NIGHTS[reason]}"
    return f"{_number(number, 'events')} {OF_EVENTS.get(reason, reason.replace('_', ' '))}"


def _number(number: int, plural: str) -> str:
    """`1 user`, `1,200 users`."""
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def _days(days: float) -> str:
    return f"{days:g} {'day' if days == 1 else 'days'}"
