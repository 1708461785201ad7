"""Measures how busy GPU and CPU are while a run trains, and finds what limits them.

`host` and `gpu_reader` read the figures. `poller` calls them in a thread and makes a `Recording`. `summary`
computes statistics of it, and `diagnosis` a verdict. `text`, `plot` and `files` show and store the results.
`monitor` does all of this for a run. Nothing here imports training or settings.
"""
