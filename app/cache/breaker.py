"""A circuit breaker: what fails again and again is left alone for a while, and asked by one request at a time.

``closed ─(3 failures in a row)─▶ open ─(the wait is over)─▶ one call probes ─▶ closed, or open for twice as long``

It decides who may call and says when that changes, once each time; it calls nothing itself, and knows no Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

N_FAILURES = 3  # in a row: one slow answer is chance, three are not, and three cost little
FIRST_WAIT_SECONDS = 1.0  # so that a restart is noticed soon
LONGEST_WAIT_SECONDS = 30.0  # so that a long outage costs next to nothing, and its end is noticed within that

Ticket = int


class Breaker:
    """Decide who may call.

    Each call takes a ticket from ``admit``, and gives it back to one of ``succeeded``, ``failed`` and ``abandoned``.
    What calls of an earlier state report counts no more: however many fail together, one outage opens it once.

    Parameters
    ----------
    on_open : callable
        Told the error that opened it; not of probes that fail.
    on_close : callable
        Told when a probe has succeeded.
    """

    def __init__(self, on_open: Callable[[Exception], None], on_close: Callable[[], None]) -> None:
        self._on_open, self._on_close = on_open, on_close
        self._state: Ticket = 0  # a number for each state; tickets carry it
        self._n_failures = 0
        self._opens_until: float | None = None
        self._is_probing = False
        self._wait = FIRST_WAIT_SECONDS
        self._calm_from = 0.0  # from then on, an outage is a new one and no relapse

    @property
    def is_closed(self) -> bool:
        """Whether everybody may call."""
        return self._opens_until is None

    def admit(self) -> Ticket | None:
        """Return a ticket to whoever may call now, None to others; the first one after the wait is the probe."""
        if self._opens_until is not None:
            if self._is_probing or monotonic() < self._opens_until:
                return None
            self._is_probing = True
            self._state += 1
        return self._state

    def succeeded(self, ticket: Ticket) -> None:
        """Close it if that was the probe."""
        if ticket != self._state:
            return
        self._n_failures = 0
        if self._is_probing:
            self._is_probing, self._opens_until = False, None
            self._calm_from = monotonic() + LONGEST_WAIT_SECONDS
            self._on_close()

    def failed(self, ticket: Ticket, error: Exception) -> None:
        """Open it after the last of ``N_FAILURES`` in a row, or for longer if that was the probe."""
        if ticket != self._state:
            return
        self._n_failures += 1
        if self._is_probing:
            self._open()
        elif self._n_failures >= N_FAILURES:
            self._wait = FIRST_WAIT_SECONDS if monotonic() >= self._calm_from else self._wait
            self._open()
            self._on_open(error)

    def abandoned(self, ticket: Ticket) -> None:
        """Let another one probe: this call's end says nothing."""
        if ticket == self._state:
            self._is_probing = False

    def _open(self) -> None:
        self._is_probing = False
        self._state += 1
        self._opens_until = monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)
