"""How busy GPU and CPU are while a program runs, and what keeps them from being busier.

Four floors, each importing only from those below: `recording`, `profiler`; `summary`, `plot`, `nvml`,
`poller`; `diagnosis`, `text`, `files`, `gpu_reader`, `host`; `monitor`, `command`.
"""
