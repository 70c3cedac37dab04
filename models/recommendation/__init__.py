"""From scored candidates to lists: rules, re-ranking, the recommendation engine."""
