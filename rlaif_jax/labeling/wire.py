"""Requests to a server: as many at once as it is given, each until it is answered or nobody waits for it any more.

    wire = Wire('http://host:8000/v1#MODEL', 'http://host:8000/v1', parallel=32, timeout=300, patience=600)
    answers = wire.each(lambda prompt: wire.ask('completions', {'prompt': prompt}), prompts)

A server fails at times. What may pass is asked again, with growing waits or when the server says. A key comes from the
environment and goes into the header of requests and nowhere else.
"""

from __future__ import annotations

import math
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from rlaif_jax import log, stopping
from rlaif_jax.config import Mistake, Passing

T, R = TypeVar('T'), TypeVar('R')

KEY, KEY_OF_OPENAI = 'RLAIF_API_KEY', 'OPENAI_API_KEY'  # the second goes to its own host alone
OPENAI = 'api.openai.com'
CONNECT = 10.0  # seconds for a connection, or for a list, which a server that is there gives at once
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds between two tries: twice as long each time
TRIES = 10  # of a request that breaks the server each time; whether it breaks at others is for the caller to see
BROKE = frozenset({0, 500, 502, 504})  # how a server answers what it breaks at; 0: late, or half
GRACE = 5.0  # seconds of waits that a run which is asked to stop still has, as a batch is stored when it is whole
LOOK = 0.2  # seconds between two looks at whether to stop, while waiting
NEVER = threading.Event()


@dataclass
class Usage:
    """What was asked of a model."""

    requests: int = 0
    read: int = 0  # tokens
    written: int = 0  # tokens


_spent: dict[str, Usage] = {}  # by address, in this process
_counting = threading.Lock()


@contextmanager
def counted(price: Sequence[float] = ()) -> Iterator[None]:
    """Says at its end, whatever that is, what servers were asked within it. `price` is that of a million tokens: of those
    that are read and those that are written, or one of both.
    """
    _spent.clear()
    try:
        yield
    finally:
        for address, one in _spent.items():
            cost = (one.read * price[0] + one.written * price[-1]) / 1e6 if price else 0.0
            told = f'{one.requests:,} requests, {one.read:,} tokens read, {one.written:,} written'
            log.say(
                f'{address}: {told}' + f', {cost:,.2f} at --price={",".join(f"{x:g}" for x in price)}' * bool(price)
            )


class _Trouble(Exception):
    """What may pass. `after`: seconds that the server wants to be left alone for. `status`: of its answer, 0 where it was
    reached and gave none that is whole.
    """

    def __init__(self, text: str, after: float | None = None, status: int | None = None) -> None:
        super().__init__(text)
        self.after, self.status = after, status


class Refused(Exception):
    """A request that the server will not have, in its own words; or one that `broke` it, if nothing else did."""

    def __init__(self, text: str, broke: bool = False) -> None:
        super().__init__(text)
        self.broke = broke


class _Over(Exception):
    """Another request of the same call has failed for good."""


class Wire:
    """The way to one server. `each` may be called by one thread at a time, `ask` by any."""

    def __init__(self, name: str, url: str, *, parallel: int, timeout: float, patience: float) -> None:
        """`name` is what it is called in errors; `timeout` is in seconds without a byte of an answer, `patience` in seconds
        without an answer to anything.
        """
        self.name, self.url, self.parallel, self.timeout, self.patience = name, url, parallel, timeout, patience
        self._key, self._call = _key(urlsplit(url).hostname or ''), threading.local()
        headers = {'Authorization': f'Bearer {self._key}'} if self._key else {}
        try:
            self._client = httpx2.Client(
                headers=headers,
                timeout=httpx2.Timeout(timeout, connect=min(CONNECT, timeout), pool=None),
                limits=httpx2.Limits(max_connections=parallel, max_keepalive_connections=parallel),
            )
        except (ValueError, OSError, ImportError) as error:  # a proxy of the environment, or a file of certificates
            raise Mistake(f'{name}: cannot be asked from here ({self._plain(error)})') from None
        weakref.finalize(self, self._client.close)
        self._answered, self._not_before = time.monotonic(), 0.0

    def each(self, do: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """What `do` gives for each item, in order, `parallel` of them at once. The first error is raised."""
        over, left, done = threading.Event(), iter(enumerate(items)), queue.SimpleQueue()
        taking = threading.Lock()

        def work() -> None:
            self._call.over = over
            while not over.is_set():
                with taking:
                    i, item = next(left, (None, None))
                if i is None:
                    return
                try:
                    done.put((i, do(item), None))
                except BaseException as error:  # noqa: BLE001, which the caller raises
                    done.put((i, None, error))

        # Of the process, not of an executor: nobody waits for a server that stalls once the run is over.
        for _ in range(min(self.parallel, len(items))):
            threading.Thread(target=work, daemon=True, name='served').start()
        found: list[Any] = [None] * len(items)
        try:
            for _ in items:
                i, found[i], error = done.get()
                if error is not None:
                    raise error
        finally:
            over.set()
        return found

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        patience: float | None = None,
        tries: int = TRIES,
        broke: Set[int] = BROKE,
    ) -> dict[str, Any]:
        """The answer to a request. Raises `Passing` where none comes, `Mistake` where none will, `Refused` for a request
        that the server does not take, or that `broke` it so many times or for as long as there is patience.
        """
        patience, begun, tried = self.patience if patience is None else patience, time.monotonic(), 0
        while True:
            self._pause(self._not_before - time.monotonic())
            try:
                answer = self._once(path, body)
            except _Trouble as trouble:
                tried += 1
                grown = min(FIRST_WAIT * 2 ** min(tried - 1, TRIES), LONGEST_WAIT) * random.uniform(0.5, 1.0)
                wait, now = max(trouble.after or 0.0, grown), time.monotonic()
                without = now - max(begun, self._answered)
                if trouble.status in broke and (tried >= tries or now - begun + wait > patience):
                    raise Refused(str(trouble).removeprefix('it answers '), broke=True) from None
                if wait > patience or without + wait > patience:
                    asks = f'asks for {wait:.0f} s of rest' if trouble.after else f'no answer for {without:.0f} s'
                    raise Passing(f'{self.name}: {trouble} ({asks}); what is stored is kept') from None
                if trouble.after is not None:  # for all: the server counts them together
                    self._not_before = max(self._not_before, now + wait)
                self._pause(wait)
            else:
                self._answered = time.monotonic()
                return answer

    def _pause(self, seconds: float) -> None:
        """Waits, unless the call is over or the run was asked to stop a while ago."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not stopping.asked():
                self._call.asked = None
            elif (asked := getattr(self._call, 'asked', None)) is None:
                self._call.asked = time.monotonic()
            elif time.monotonic() - asked > GRACE:
                raise KeyboardInterrupt
            if getattr(self._call, 'over', NEVER).wait(min(left, LOOK)):
                raise _Over

    def _once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        url = path if '://' in path else f'{self.url}/{path}'
        try:
            if body is None:
                answer = self._client.get(url, timeout=min(CONNECT, self.timeout))
            else:
                answer = self._client.post(url, json=body)
        except httpx2.TimeoutException as error:
            kind = 'cannot be reached' if isinstance(error, httpx2.ConnectTimeout) else 'does not answer'
            late = None if isinstance(error, httpx2.ConnectTimeout) else 0
            raise _Trouble(f'{kind} in time', status=late) from None
        except httpx2.ConnectError as error:
            raise _Trouble(f'cannot be reached ({self._plain(error)})') from None
        except httpx2.RequestError as error:
            raise _Trouble(f'the answer broke off ({self._plain(error)})', status=0) from None
        status = answer.status_code
        if status == 200:
            try:
                found = answer.json()
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise _Trouble('its answer is no JSON, or half of it', status=0)
            if body is not None and '://' not in path:
                self._count(found)
            return found
        said = f'{status}: {self._said(answer)}'
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Trouble(f'it answers {said}', _after(answer.headers.get('Retry-After', '')), status)
        if status in (400, 404, 405, 413, 422):
            raise Refused(said)
        if status in (401, 403):
            keys = ' or '.join(_names(urlsplit(self.url).hostname or ''))
            what = (
                f'the key in {keys} is not its own, or allows too little'
                if self._key
                else f'it wants a key; set {keys}'
            )
            raise Mistake(f'{self.name}: it answers {status}: {what}')
        if 300 <= status < 400:
            raise Mistake(f'{self.name}: it answers {status}, and leads elsewhere; give the address that it leads to')
        raise Mistake(f'{self.name}: it answers {said}')

    def _said(self, answer: httpx2.Response) -> str:
        """The server's own words, a line of them."""
        with suppress(ValueError, AttributeError, KeyError, TypeError):
            found = answer.json()
            found = found.get('error', found)
            return self._plain(found if isinstance(found, str) else found['message'])
        return self._plain(answer.text) or answer.reason_phrase

    def _plain(self, said: Any) -> str:
        text = ' '.join(str(said).split())
        return (text.replace(self._key, '…') if self._key else text)[:200]

    def _count(self, answer: dict[str, Any]) -> None:
        usage = found if isinstance(found := answer.get('usage'), dict) else {}  # which some leave out
        number = lambda name: found if type(found := usage.get(name)) is int else 0  # noqa: E731
        with _counting:
            one = _spent.setdefault(self.name, Usage())
            one.requests, one.read = one.requests + 1, one.read + number('prompt_tokens')
            one.written += number('completion_tokens')


def _key(host: str) -> str:
    """The key for a host, from the environment. Raises `Mistake` for what cannot be one, without saying it."""
    for name in _names(host):
        if key := os.environ.get(name, '').strip():
            if not key.isascii() or not key.isprintable():
                raise Mistake(f'{name} holds signs that no key has')
            return key
    return ''


def _names(host: str) -> list[str]:
    """The variables that may hold a key for a host, its own first."""
    return [*[KEY_OF_OPENAI] * (host == OPENAI), KEY]


def _after(said: str) -> float | None:
    """Seconds of a `Retry-After`, which says them or a date."""
    try:
        return max(float(said), 0.0) if math.isfinite(float(said)) else None
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
