"""The devices that fastae computes on: finds them, chooses one and how to use it, and applies the choice."""
