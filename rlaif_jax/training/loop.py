"""The loop of every training stage: it goes on from what was saved, makes the next batch while a step runs, tells what
steps were like, saves, and stops where somebody asks for it.

    with loop.opened('sft', folder, cfg.steps, state, save_every=cfg.save_every) as training:
        for i, batch in training.steps_left(batch_at):
            training.state, numbers = step(training.state, batch)
            training.tell(i, numbers, lambda shown: f'loss {shown["sft/loss"]:.3f}')

Numbers of a step are fetched from the device while the next one runs, so that the device never waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from rlaif_jax import checkpoint, hosts, log, stopping
from rlaif_jax.training import profiling
from rlaif_jax.training.state import SKIPPED, check_finite

Numbers = Mapping[str, jax.Array | float]


@dataclass(eq=False)
class Loop:
    """The steps of a stage that are left. Its user puts the state behind a step in the place of the one before it."""

    name: str  # of the stage; its numbers that have no other stand below it
    title: str  # what it is called on the screen
    steps: int
    start: int  # steps that were done before
    state: Any
    metrics: log.Metrics
    checkpoints: checkpoint.Checkpoints
    bar: log.Bar
    stop: stopping.Stop
    save_every: int
    log_every: int
    optimizer: str  # the field of the config that holds it, for whoever has to turn it down
    trace: profiling.Trace
    _untold: list[Callable[[], None]] = field(default_factory=list)
    _text: str = ''

    def steps_left(self, batch_at: Callable[[int], Any]) -> Iterator[tuple[int, Any]]:
        """`(i, batch_at(i))` of each; the batch is made beforehand, in a thread of its own."""
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(batch_at, self.start) if self.start < self.steps else None
            for i in range(self.start, self.steps):
                batch, done = coming.result(), i + 1
                coming = ahead.submit(batch_at, min(done, self.steps - 1))
                asked = hosts.anyone(lambda: self.stop.asked)
                with self.trace.step(i):
                    yield i, batch
                self.trace.done(i, self.state)
                # Read once: a signal that comes later waits for the next step's save.
                stop = bool(asked)
                if done % self.save_every == 0 or done == self.steps or stop:
                    self.catch_up()  # what is saved is told, whatever happens next
                    self.checkpoints.save(done, self.state, block=stop)
                if stop:
                    self.stop.exit(f'{self.title}: stopped at step {done} of {self.steps}')

    def tell(
        self,
        step: int,
        numbers: Numbers,
        text: Callable[[dict[str, float]], str],
        more: Mapping[str, float] | None = None,
    ) -> None:
        """Take down what a step was like: its numbers, which the device may still be at, and `more` that is known already.

        They are written when the next step is under way, or by `catch_up`; so is `text` of them, beside the bar. Raises
        `Mistake` where too many steps in a row, up to the one before, were not finite.
        """
        self.catch_up()

        def told() -> None:
            if step % self.log_every == 0 or step + 1 == self.steps or more:
                named = {name if '/' in name else f'{self.name}/{name}': x for name, x in numbers.items()}
                shown = {name: float(x) for name, x in named.items() if not name.endswith(SKIPPED)}
                self.metrics.write(step, shown | dict(more or {}))
                self._text = text(shown)
            self.bar.advance(self._text)
            check_finite(self.name, step, int(numbers[SKIPPED]), self.optimizer)

        self._untold.append(told)

    def catch_up(self) -> None:
        """Write what was taken down."""
        while self._untold:
            self._untold.pop()()


@contextmanager
def opened(
    name: str,
    folder: Path,
    steps: int,
    state: Any,
    *,
    save_every: int,
    log_every: int = 1,
    title: str = '',
    note: str = '',
    optimizer: str = 'optimizer',
) -> Iterator[Loop]:
    """The loop of a stage in its folder, from the newest checkpoint there, else from `state`; it is given up where there is
    one, so that memory holds no two.
    """
    with checkpoint.Checkpoints(folder) as checkpoints:
        start = 0
        if checkpoints.begun():
            start, state = checkpoints.restore(None, checkpoint.emptied(state))
            log.say(f'{title or name}: going on from step {start} of {steps}')
        with (
            log.Metrics(folder, start_step=start) as metrics,
            log.progress(f'{title or name} {note}'.rstrip(), steps, start) as bar,
            stopping.stop_on_signal() as stop,
        ):
            loop = Loop(
                name, title or name, steps, start, state, metrics, checkpoints, bar, stop, save_every, log_every, optimizer,
                profiling.Trace(folder.name),
            )  # fmt: skip
            try:
                yield loop
            except Exception:  # of the next step; who stops at once does not wait
                loop.catch_up()
                raise
            finally:
                loop.trace.stop()
            loop.catch_up()
