"""How many requests are under way at once: found by trying, between a floor and `download.concurrency`.

More at once hides latency until the network, the resolver or this machine is full; from there it only makes
time-outs. So the limit grows while it is the limit that holds things back and more of it brought more answers,
and shrinks when time-outs become more frequent than they were.

The surprising part: dead hosts time out however few requests there are, so it is the rise of time-outs above
their usual share that counts, not their number.
"""

import asyncio
from collections import deque

_FLOOR = 16
_WINDOW_S = 2.0
_LEAST = 20  # outcomes in a window that say anything
_RISE = 0.15  # of the time-outs' share above the usual that means too much
_GROW, _SHRINK = 1.5, 0.7


class AdaptiveLimit:
    """A semaphore whose size follows what comes of the requests. Belongs to one event loop.

    Args:
        most: the limit is never above it.

    Attributes:
        limit: requests that may be under way now.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(_FLOOR * 2, most)
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._usual = 0.0  # share of time-outs, a moving average
        self._best = 0.0  # answers a second, the most seen at this or a lower limit
        self._answers = self._timeouts = 0
        self._was_full = False
        self._window_began: float | None = None

    async def __aenter__(self) -> None:
        if self._used < self.limit:
            self._used += 1
            return
        self._was_full = True
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given a place that it will not take
                self._leave()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._used -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._used < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._used += 1
                turn.set_result(None)

    def observe(self, *, timed_out: bool, now: float) -> None:
        """Notes what came of a request.

        Args:
            timed_out: it ended by a deadline.
            now: seconds, of any clock that only goes forward.
        """
        if self._window_began is None:
            self._window_began = now
        self._timeouts += timed_out
        self._answers += not timed_out
        seconds, outcomes = now - self._window_began, self._answers + self._timeouts
        if seconds < _WINDOW_S or outcomes < _LEAST:
            return
        self._adjust(self._timeouts / outcomes, self._answers / seconds)
        self._answers = self._timeouts = 0
        self._was_full = bool(self._waiting)
        self._window_began = now
        self._let_in()

    def _adjust(self, share: float, rate: float) -> None:
        if share > self._usual + _RISE:
            self.limit = max(min(_FLOOR, self.most), int(self.limit * _SHRINK))
            self._best = 0.0  # what was reached with a larger limit is no measure for a smaller one
        elif self._was_full and rate > 1.05 * self._best:
            self._best = rate
            self.limit = min(self.most, int(self.limit * _GROW) + 1)
        self._usual += 0.3 * (share - self._usual)
