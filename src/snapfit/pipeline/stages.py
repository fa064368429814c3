"""How the streaming stages, which call a function, move the bar of a job."""

from __future__ import annotations

from snapfit.core.progress import Progress


class StageProgress:
    """A `Progress` as the callback (stage, done, total) that the streaming stages call."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = ""
        self._done = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Open a bar when the stage changes, then move it to `done`."""
        if stage != self._stage:
            self._stage, self._done = stage, 0
            self._progress.stage(stage, total)
        if done > self._done:
            self._progress.advance(done - self._done)
            self._done = done
