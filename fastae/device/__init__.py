"""The devices that fastae computes on: what is there, what is chosen, and what the process is set to."""
