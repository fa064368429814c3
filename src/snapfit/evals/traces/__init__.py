"""Why a model no longer reasons, read off what it wrote: one view of a trace a file."""
