"""Whether the GPU is kept busy: a sampler beside the loop, and a report that says what it waits for."""
