"""Measures how busy GPU and CPU are while a loop trains, and finds what limits it.

`host` reads the host's figures, and `fastae.device.gpu_reader` those of a GPU. `poller` calls them in a
thread and makes a `Recording`. `summary` computes statistics of it, and `diagnosis` a verdict. `text`, `plot`
and `files` show and store the results. `monitor` does all of this for a run, to which `loop_timer` gives the
loop's figures, and `watch` for a loop that is not fastae's. Nothing here imports training or settings.
"""
