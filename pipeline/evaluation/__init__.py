"""From target ranks to a metrics report: segments, diagnostics, comparisons."""
