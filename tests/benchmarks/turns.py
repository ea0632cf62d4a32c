"""Processes that answer one request after the other, so that what is compared runs in turn on one machine."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TextIO


class Worker:
    """A process that reads requests, a line of JSON each, and answers each with a line of JSON."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding='utf-8',
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self.what = ' '.join(command)

    def ask(self, *request: Any) -> dict[str, Any]:
        """What is answered. Ends the program where the process has ended instead."""
        try:
            self.process.stdin.write(json.dumps(request) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f'{self.what:.300}: its process ended with status {self.process.wait()}')
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Clock:
    """Begins when it is made."""

    def __init__(self) -> None:
        self.began, self.worked = time.perf_counter(), time.process_time()

    def stopped(self) -> dict[str, float]:
        """Seconds since then, those that this process has computed in, all its threads together, and its peak in GiB."""
        return {
            'seconds': time.perf_counter() - self.began,
            'computed': time.process_time() - self.worked,
            'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }


def answers() -> TextIO:
    """Where a process writes its answers; from here on what libraries print goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    return out


def serve(answer: Callable[..., dict[str, Any]], out: TextIO) -> None:
    """Answer the requests on standard input until there are no more."""
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), file=out, flush=True)
