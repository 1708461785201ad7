"""The report on a sweep, or on any runs: one HTML file and its figures, from run folders alone."""
