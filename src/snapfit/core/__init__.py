"""Types and decisions: numpy and the standard library only, never torch."""
