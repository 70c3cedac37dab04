"""From target ranks to a metrics report."""
