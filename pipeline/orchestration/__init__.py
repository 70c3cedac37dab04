"""Stage graph, fingerprints, and the runner that brings stages up to date."""
