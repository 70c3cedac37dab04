"""The stage graph, fingerprints, and bringing stages up to date."""
