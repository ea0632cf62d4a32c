"""A trace of some steps of training: what the devices, and the host beside them, were at. It only observes.

with profiling.profile('20:22', folder / 'profile'):
    ...                                            every training loop within it traces its steps 20, 21 and 22
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from rlaif_jax import hosts, log
from rlaif_jax.config import Mistake


@dataclass(eq=False)
class _Asked:
    first: int
    last: int
    folder: Path
    written: list[Path] = field(default_factory=list)


_asked: ContextVar[_Asked | None] = ContextVar('profile', default=None)


def read_steps(text: str) -> tuple[int, int]:
    """The first and the last step of '20:22', counted from 0 as in metrics.jsonl. Raises `Mistake` for anything else."""
    found = re.fullmatch(r'(\d+)(?::(\d+))?', text.strip())
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise Mistake(f'--profile={text}: wants the first and the last step, counted from 0: --profile=20:22')
    return int(found[1]), int(found[2] or found[1])


@contextmanager
def profile(steps: str | None, folder: Path) -> Iterator[None]:
    """Within it each training loop traces these steps into a folder of its own below `folder`; None: no loop does. Says
    in the end how to open the traces, or that there is none.
    """
    asked = steps and _Asked(*read_steps(steps), Path(folder))
    token = _asked.set(asked or None)
    try:
        yield
    finally:
        _asked.reset(token)
        if asked:
            _tell(asked)


def _tell(asked: _Asked) -> None:
    if not asked.written:
        log.say(f'--profile={asked.first}:{asked.last}: no stage trained such a step just now, so nothing was traced')
        return
    for path in asked.written:
        log.say(f'profile: {path}')
    log.say(
        'open its perfetto_trace.json.gz in https://ui.perfetto.dev, or the folder by '
        f'`pip install xprof && xprof --logdir {shlex.quote(str(asked.written[0]))}`'
    )


class Trace:
    """What a training loop traces of its steps, if it was asked to."""

    def __init__(self, stage: str) -> None:
        self.asked, self.stage, self.running = _asked.get(), stage, False

    def step(self, i: int) -> AbstractContextManager:
        """In which step `i` is called; the trace begins here where `i` is one of its steps."""
        if self.asked is None or not self.asked.first <= i <= self.asked.last:
            return nullcontext()
        if not self.running:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # would record every call, which takes longer than a small step
            # Several processes write into one folder, of which this one file could be of one alone.
            perfetto = hosts.count() == 1
            jax.profiler.start_trace(self.folder, create_perfetto_trace=perfetto, profiler_options=options)
            self.running = True
        return jax.profiler.StepTraceAnnotation(self.stage, step_num=i)

    def done(self, i: int, state: Any) -> None:
        """Behind step `i`, of which `state` comes: behind the last one the trace is written, once the devices are done."""
        if self.running and i >= self.asked.last:
            jax.block_until_ready(state)
            self.stop()

    def stop(self) -> None:
        """Write what was traced, if anything was. A disk that is full ends no training."""
        if not self.running:
            return
        self.running = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError, ValueError) as error:
            log.error(f'{self.folder}: the profile could not be written ({error})')
        else:
            self.asked.written.append(self.folder)

    @property
    def folder(self) -> Path:
        return self.asked.folder / self.stage
