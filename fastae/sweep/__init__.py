"""The article's experiment: the same network trained once for each loss."""
