"""Files on disk and in object stores: artifacts, sources, event parts."""
