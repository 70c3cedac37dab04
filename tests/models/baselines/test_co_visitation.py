"""Co-visitation of a growing log against a new count."""

from dataclasses import replace

import numpy as np

from models.baselines.co_visitation import CoVisitation, MovingCoVisitation
from models.histories import histories_from_lists


def test_a_growing_log_counted_piece_by_piece_equals_a_new_count():
    random = np.random.default_rng(2)
    rows = [random.integers(1, 8, size).tolist() for size in random.integers(0, 30, 12)]
    whole = histories_from_lists(rows)
    moving = MovingCoVisitation(window=3, decay=0.7, max_neighbours=4)
    for share in (0.3, 0.3, 0.8, 1.0):
        ends = whole.starts + (whole.lengths * share).astype(np.int64)
        before = replace(whole, ends=ends)
        found = moving.fit(before, 7)
        expected = CoVisitation.fit(before, 7, window=3, decay=0.7, max_neighbours=4)
        np.testing.assert_allclose(found.follows.toarray(), expected.follows.toarray(), rtol=1e-6)
        assert np.array_equal(found.counts, expected.counts)
        assert found.fitted_on == expected.fitted_on
