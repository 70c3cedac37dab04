"""Stage rank: the second stage. This version has none; the decision is written down all the same, for those who read it."""

from pipeline.stages import Context
from pipeline.store import write_json

REASON = "this version has no second-stage ranker: the order of retrieval stands"


def build(ctx: Context) -> None:
    """Write ranker.json: that no ranker is used, and why."""
    write_json(
        ctx.folder / "ranker.json", {"used": False, "setting": ctx.config.ranker.use, "reason": REASON}
    )
    ctx.summary(REASON)
