"""Signals are answered between chunks: save, then leave the way the scheduler needs; and chunks short enough for it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from slurm import preempt
from slurm.preempt import Action

EX_TEMPFAIL = 75  # "try again later": what a scheduler may requeue on
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # a later one in this list overrides an earlier one


class Interrupt:
    """While active, a signal leaves at once, or while `postponed` only sets `requested`.

    SIGINT interrupts at once, or while postponed the second time.
    """

    def __init__(self, deadline: float | None = None):
        """`deadline`: when to stop of itself, in seconds of time.monotonic."""
        self.deadline = deadline
        self._postponed = False  # whether there is something to save
        self._signal: int | None = None
        self._leaving = False

    @property
    def signalled(self) -> bool:
        """Whether a signal came, so that little time may be left."""
        return self._signal is not None

    @property
    def requested(self) -> bool:
        """Whether a signal came or the time is up."""
        return self.signalled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def __enter__(self) -> "Interrupt":
        """Take over the signals."""
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Only note signals, for whoever looks at `requested` often and saves."""
        self._postponed = True
        yield
        self._postponed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.signalled or not self._postponed):
            raise KeyboardInterrupt
        self._signal = max((number, self._signal or number), key=_SIGNALS.index)
        if not self._postponed and not self._leaving:
            self.leave("stopped with nothing to save; the same command goes on")

    def leave(self, message: str) -> None:
        """Leave the program with a line, as `slurm.preempt` says; after the save, if there was something to save.

        Raises:
            SystemExit: with the status of a temporary failure, or as a handler that was there before does.
        """
        self._leaving = True
        reason = "" if self._signal is None else f"{signal.Signals(self._signal).name}: "
        print(f"{reason}{message}", file=sys.stderr, flush=True)
        if self._action() is Action.WAIT:
            preempt.wait(until=lambda: self._action() is not Action.WAIT)
        previous = self._previous[signal.SIGUSR2]
        if self._action() is Action.HAND_ON and callable(previous):
            previous(signal.SIGUSR2, None)
        if self._action() is Action.REQUEUE:
            preempt.requeue(os.environ)
        raise SystemExit(EX_TEMPFAIL)

    def _action(self) -> Action:
        return preempt.action(os.environ, self._signal, callable(self._previous[signal.SIGUSR2]))


class Pace:
    """How long chunks and saves take, against the notice (seconds) that a scheduler gives before it stops a job."""

    def __init__(self, notice: float, clock: Callable[[], float] = time.monotonic):
        """A chunk and a save are to take no more than half of the notice."""
        self.notice, self._clock = notice, clock
        self.save_seconds = 0.0  # of the last one
        self.forget_chunks()

    def forget_chunks(self) -> None:
        """After another program was compiled."""
        self.chunk_seconds = float("inf")  # of the fastest: another may have been held up by what else ran

    def told(self, updates: int) -> str:
        """The first half of a line that says why chunks of `updates` updates are too long."""
        return (
            f"a chunk of {updates:,} updates takes {self.chunk_seconds:.3g} s and a save {self.save_seconds:.3g} s, "
            f"too long for a notice of {self.notice:g} s"
        )

    @contextlib.contextmanager
    def chunk(self) -> Iterator[None]:
        """Time a chunk."""
        begun = self._clock()
        yield
        self.chunk_seconds = min(self.chunk_seconds, self._clock() - begun)

    @contextlib.contextmanager
    def save(self) -> Iterator[None]:
        """Time a save."""
        begun = self._clock()
        yield
        self.save_seconds = self._clock() - begun

    def fitting(self, updates: int, per_iteration: int) -> int:
        """Updates of a chunk that fits: `updates`, or else its largest divisor that does, in whole iterations.

        Not a single iteration, for which XLA makes another program: from two on, parameters on the CPU have the
        same bytes whatever the length.
        """
        known = self.chunk_seconds < float("inf")
        if not known or self.chunk_seconds + self.save_seconds <= self.notice / 2:
            return updates
        allowed = max(self.notice / 2 - self.save_seconds, self.notice / 20)  # a chunk must remain for any save
        iterations = updates // per_iteration
        divisors = [n for n in range(2, iterations + 1) if iterations % n == 0] or [1]
        fits = [n for n in divisors if n * self.chunk_seconds / iterations <= allowed]
        return max(fits, default=divisors[0]) * per_iteration
