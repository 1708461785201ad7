"""The size of the article's experiment, with which the speed of runs is compared."""

ARTICLE_ITERATIONS = 6 * 100_000
"""The iterations of the article's six runs together, of 64 images each."""

ARTICLE_IMAGES = 64 * ARTICLE_ITERATIONS
ARTICLE_SECONDS = 30 * 3600
"""The article's six runs took 30 GPU-hours."""


def speed_ratio(seconds: float, article: float) -> str:
    """Returns how a time compares with the article's for the same work: '1.88x faster' or '1.2x slower'."""
    return f"{article / seconds:,.3g}x faster" if seconds <= article else f"{seconds / article:,.3g}x slower"
