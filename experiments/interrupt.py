"""Signals are answered between chunks: save, then leave."""

import signal
import sys
import time
from types import FrameType

EX_TEMPFAIL = 75  # "try again later": what a scheduler may requeue on
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Interrupt:
    """While active, the first signal only sets `requested`; a second SIGINT interrupts at once."""

    def __init__(self, deadline: float | None = None):
        """`deadline`: when to stop of itself, in seconds of time.monotonic."""
        self.deadline = deadline
        self._signalled = False

    @property
    def requested(self) -> bool:
        """Whether a signal came or the time is up."""
        return self._signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def __enter__(self) -> "Interrupt":
        """Take over the signals."""
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True

    def leave(self, message: str) -> None:
        """Leave the program with a line and the status of a temporary failure."""
        print(message, file=sys.stderr)
        raise SystemExit(EX_TEMPFAIL)
