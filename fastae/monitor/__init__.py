"""How busy GPU and CPU are while a run trains, and what keeps them from being busier.

`host` and `gpu_reader` read, `poller` calls them in a thread and keeps a `Recording`; `summary` turns that
into figures, `diagnosis` into a verdict, `text`, `plot` and `files` show them. `monitor` does all of it for a
run. Nothing here imports training or settings.
"""
