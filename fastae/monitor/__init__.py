"""How busy GPU and CPU are while a program runs, and what keeps them from being busier.

Five floors, each importing only from those below: `recording`, `profiler`; `summary`, `plot`, `nvml`,
`poller`; `diagnosis`, `files`, `gpu_reader`, `host`; `text`; `monitor`, `command`.
"""
