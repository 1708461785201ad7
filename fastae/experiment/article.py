"""The size of the article's experiment, with which the speed of runs is compared."""

ARTICLE_LOSSES = 6
"""The number of the article's runs, one per loss."""

ARTICLE_ITERATIONS = 100_000
"""The iterations of each of the article's runs."""

ARTICLE_IMAGES = 64 * ARTICLE_ITERATIONS * ARTICLE_LOSSES
"""The images that the article's runs trained on together, 64 in each iteration."""

ARTICLE_SECONDS = 30 * 3600
"""The article's six runs took 30 GPU-hours."""

SMOOTHING = 0.95
"""The weight of TensorBoard's smoothing in the article's first figure."""


def speed_ratio(seconds: float, article: float) -> str:
    """Returns how a time compares with the article's for the same work: '1.88x faster' or '1.2x slower'."""
    return f"{article / seconds:,.3g}x faster" if seconds <= article else f"{seconds / article:,.3g}x slower"
