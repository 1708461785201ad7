"""Makes the report on a sweep or any runs, one HTML file and its figures, from run folders only."""
