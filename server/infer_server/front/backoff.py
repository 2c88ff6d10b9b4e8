"""When to try again: at once after a long life, later and later while lives are short. Readings of the clock are passed in."""

from __future__ import annotations


class Backoff:
    """Delays of `first`, twice that, and so on up to `most`; all in seconds. Starts anew after `healthy` seconds of life."""

    def __init__(self, first: float, most: float, healthy: float) -> None:
        self._first, self._most, self._healthy = first, most, healthy
        self._delay = 0.0
        self.failures = 0
        """in a row"""

    def after(self, lifetime: float) -> float:
        """How long to wait, given how long the last attempt lived."""
        if lifetime >= self._healthy:
            self._delay, self.failures = 0.0, 0
        else:
            self.failures += 1
        delay = self._delay
        self._delay = min(self._most, max(self._first, 2 * delay))
        return delay
