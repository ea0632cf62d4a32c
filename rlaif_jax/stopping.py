"""Ctrl-C and SIGTERM: a wish to stop, that loops grant behind what they are at.

with stop_on_signal() as stop:
    for step in steps:
        ...
        if stop.asked:
            save()
            stop.exit('stopped at step 20')
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

from rlaif_jax import hosts
from rlaif_jax.log import console, error, say

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HEARD = 0.3  # seconds in which Python hears of a signal, unless XLA computes
PATIENCE = 2.0  # seconds that a second signal leaves it


class Stop:
    """Whether somebody asked the run to stop; see `stop_on_signal`."""

    def __init__(self, loop: bool = True) -> None:
        self.asked = any(stop.asked for stop in _stops)  # of who was asked before, and could not grant it
        self._loop = loop
        self._count = 0  # signals; of two that come while XLA computes, Python hears one
        self._hears = 0
        self._heard, self._told = threading.Event(), threading.Event()

    def exit(self, where: str) -> NoReturn:
        """Call it behind a save: leaves the program, status 130, saying that the same command goes on from here."""
        self._told.wait(HEARD)
        say(f'{where}; saved. The same command goes on from here.')
        raise SystemExit(130)

    def hear(self, number: int, frame: Any) -> None:
        """Python's handler: it runs in the main thread, once that is back from XLA."""
        self._hears += 1
        if self.asked or self._count > 1 or not (self._loop or hosts.count() > 1):
            self._heard.set()
            late = time.monotonic() + HEARD
            while self._count < self._hears and time.monotonic() < late:
                time.sleep(0.001)  # the thread that tells is to take this signal for ours, not for the next loop's
            raise KeyboardInterrupt
        self.asked = True

    def tell(self, ends: bool) -> None:
        """Says, in a thread of its own, that a signal came. The second one `ends` a program that does not hear it."""
        self._count += 1
        if self._count == 1 and self._loop:
            say('stopping after this step, once it is saved; again to stop at once')
        elif self._count == 1 and not self._heard.wait(HEARD):
            say('stopping once what is being computed is done; again to stop at once')
        elif self._count == 2 and ends and not self._heard.wait(PATIENCE):
            console().show_cursor()
            error('stopped at once; the same command goes on from what is saved')
            sys.stdout.flush()
            os._exit(130)
        self._told.set()


_stops: list[Stop] = []  # of each `stop_on_signal` that is open; the innermost, the last, hears


@contextmanager
def stop_on_signal(loop: bool = True) -> Iterator[Stop]:
    """Turns the first Ctrl-C or SIGTERM into a wish, `asked`, that the loop grants after its step; a second one stops
    at once. Either is answered at once, whatever is being computed.

    Without `loop` the first one stops as soon as Python hears it. That is for a whole program: whoever holds one outside
    all loops lets the second signal end the process while XLA computes, which leaves what a crash does. One of several
    processes cannot stop by itself: it does so in the next `stop_together`, or in the next loop.
    """
    stop = Stop(loop)
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield stop
        return
    before = {number: signal.signal(number, stop.hear) for number in SIGNALS}
    _stops.append(stop)
    try:
        with _listening() if len(_stops) == 1 else nullcontext():
            yield stop
    finally:
        _stops.remove(stop)
        if stop.asked and _stops:  # behind its last look: the next loop grants it
            _stops[-1].asked = True
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether the innermost loop was asked to stop, and has not granted it yet: for who waits within it, in any thread."""
    return bool(_stops) and _stops[-1].asked


def stop_together() -> None:
    """Raises KeyboardInterrupt in every process of a run if one of them was asked to stop and no loop is there to grant it.
    Between two batches of whatever is computed together.
    """
    if hosts.count() > 1 and _stops and not _stops[-1]._loop and hosts.anyone(lambda: _stops[-1].asked):
        raise KeyboardInterrupt


@contextmanager
def _listening() -> Iterator[None]:
    """A thread that is told of signals by the system: a handler of Python waits until the main thread is back from XLA,
    which may take minutes.
    """
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)

    def listen() -> None:
        while heard := os.read(ear, 1):
            if heard[0] in SIGNALS and _stops:
                _stops[-1].tell(ends=not _stops[0]._loop)

    thread = threading.Thread(target=listen, name='signals', daemon=True)
    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(mouth)  # the thread reads to the end
        thread.join()
        os.close(ear)
