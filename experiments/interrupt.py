"""Signals are answered between chunks: save, then leave."""

import signal
import sys
from types import FrameType

EX_TEMPFAIL = 75  # "try again later": what a scheduler may requeue on
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Interrupt:
    """While active, the first signal only sets `requested`; a second SIGINT interrupts at once."""

    def __enter__(self) -> "Interrupt":
        """Take over the signals."""
        self.requested = False
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def leave(self, message: str) -> None:
        """Leave the program with a line and the status of a temporary failure."""
        print(message, file=sys.stderr)
        raise SystemExit(EX_TEMPFAIL)
