"""What a run tells the world: metrics (JSON lines always, TensorBoard, optional W&B), progress, tables of samples.

    with Metrics(folder, start_step=step) as metrics, progress('reinforce', steps, step) as bar:
        metrics.write(step, {'objective/kl': 0.3})
        bar.advance('kl 0.30')

Nothing here knows jax: numbers come in, lines go out. Where several processes share a run, the first one logs; the
others print what stops them, and no more.
"""

import codecs
import functools
import hashlib
import importlib
import io
import json
import math
import numbers
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from rlaif_jax import hosts
from rlaif_jax.config import Mistake

NARROW = 20  # columns
PLAIN_SECONDS = 10.0  # between two lines of progress where there is no terminal
FIRST = 'compiling first'  # which takes longest; there is nothing else to tell of the first unit


# Files


def write_whole(path: Path, data: str | bytes, put: Callable[[Path, Path], None] | None = None) -> None:
    """Writes `path` so that a reader, or a crash, finds the old data or the new, never a part: `put` moves what is finished
    to its place. Its OSErrors name the path.
    """
    if not hosts.first():
        return
    partial = path.with_name(f'.{path.name}.partial')
    # Lone surrogates become their escapes, which are valid JSON.
    data = data if isinstance(data, bytes) else data.encode('utf-8', 'backslashreplace')
    try:
        with open(partial, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        (put or os.replace)(partial, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # a disk that gets full names none
        raise
    finally:
        partial.unlink(missing_ok=True)


def to_json(value: Any) -> str:
    """One line of strict JSON: a number that is not finite becomes null; numpy and jax scalars become numbers."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, float) and hasattr(value, 'tolist'):  # of numpy or jax; int and bool stay what they are
        return _plain(value.tolist())
    return float(value) if math.isfinite(value) else None


class Metrics(AbstractContextManager):
    """The metrics of one run, in `folder`: metrics.jsonl, samples.jsonl, TensorBoard's events, W&B if asked.

    Metrics of a step are of the one behind `step` others, samples are what it is like after `step` of them; what is known
    before any step stands at -1. A run resumed at `start_step` forgets what an earlier one wrote of later ones, and a
    line cut short by a crash, so that every step is there once.

    metrics.jsonl is what a run is judged by. TensorBoard and W&B are for looking: one that is not installed, or fails, is
    named once and done without.
    """

    def __init__(self, folder: Path, *, start_step: int = 0, wandb: bool | None = None):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = hosts.first()
        start_step = start_step or -1  # from the start: nothing is kept
        self._lines = _open_lines(folder / 'metrics.jsonl', start_step)
        self._samples = _open_lines(folder / 'samples.jsonl', start_step + 1)
        if wandb is None:  # as the launcher's --wandb asks
            wandb = os.environ.get('RLAIF_JAX_WANDB') == '1'
        self._board = Optional('TensorBoard', 'tensorboardX', wanted)
        self._board.open(
            lambda board: board.SummaryWriter(str(folder / 'tensorboard'), purge_step=start_step, flush_secs=10)
        )
        self._wandb = Optional('W&B', 'wandb', wandb and wanted)
        # One run a folder.
        same = hashlib.sha1(str(folder.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()[:16]
        self._wandb.open(
            lambda wandb: wandb.init(project='rlaif_jax', name=folder.name, id=same, dir=str(folder), resume='allow')
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one line {"step", "time" (Unix seconds), name: value, ...}, flushed; what is not finite is null."""
        if clash := {'step', 'time'} & set(values):
            raise ValueError(f'a metric cannot be named {clash.pop()!r}')
        numbers = {name: float(value) for name, value in values.items()}
        self._lines.write(to_json({'step': int(step), 'time': round(time.time(), 3), **numbers}) + '\n')
        self._lines.flush()
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self._board.use(lambda board: [board.add_scalar(name, value, int(step)) for name, value in finite.items()])
        self._wandb.use(lambda run: run.log(finite, step=max(int(step), 0)))  # it takes no negative one

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds one line {"step", ...} to samples.jsonl for each row, flushed: `step` steps are done."""
        for row in rows:
            self._samples.write(to_json({'step': int(step), **row}) + '\n')
        self._samples.flush()

    def close(self) -> None:
        self._lines.close()
        self._samples.close()
        self._board.use(lambda board: board.close())
        self._wandb.use(lambda run: run.finish())

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_lines(path: Path, start_step: int) -> TextIO:
    """`path` opened to append, holding only whole lines of the steps before `start_step`."""
    if not hosts.first():
        return open(os.devnull, 'w', encoding='utf-8')
    if path.exists():
        old = path.read_text(encoding='utf-8', errors='replace')
        new = ''.join(line + '\n' for line, row in _rows(old) if row['step'] < start_step)
        if new != old:
            write_whole(path, new)
    return open(path, 'a', encoding='utf-8', errors='backslashreplace')


def _rows(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of metrics or samples, each with what it says; not those cut short by a crash, or not ours."""
    for line in text.split('\n'):
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get('step'), int):
                yield line, row


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, by its path or its run folder's; null is None.

    A line cut short by a crash is left out, as a resumed run does. Mistake: no such file.
    """
    path = Path(path)
    path = path / 'metrics.jsonl' if path.is_dir() else path
    if not path.is_file():
        raise Mistake(f'{path}: there are no metrics here; a run writes them to metrics.jsonl in its folder')
    return [row for _, row in _rows(path.read_text(encoding='utf-8', errors='replace'))]


class Optional:
    """A program that shows metrics, if it is there and works: whatever it raises is said once, and ends its part."""

    def __init__(self, name: str, module: str, wanted: bool = True):
        self._name, self._module, self._wanted = name, module, wanted
        self.it: Any = None

    def open(self, make: Callable[[Any], Any]) -> None:
        """Takes what `make(module)` makes into use."""
        if not self._wanted:
            return
        try:
            self.it = make(importlib.import_module(self._module))
        except ModuleNotFoundError as missing:
            missed = missing.name or self._module
            say_once(
                f'{missed} is not installed: no {self._name}; the metrics are in metrics.jsonl (pip install {missed})'
            )
        except Exception as error:  # noqa: BLE001, of a program that is not ours; a run does without it
            self._fails(error)

    def use(self, what: Callable[[Any], Any]) -> None:
        if self.it is None:
            return
        try:
            what(self.it)
        except Exception as error:  # noqa: BLE001
            self.it = None
            self._fails(error)

    def _fails(self, error: Exception) -> None:
        reason = f'{type(error).__name__}: {error}'.split('\n')[0][:200]
        say_once(
            f'{self._name} does not work here ({reason}); the run goes on without, its metrics are in metrics.jsonl'
        )


def wandb_ready() -> bool:
    """Whether W&B is here and has a key, without a question at the terminal. Says what is missing."""
    login = Optional('W&B', 'wandb')
    login.open(lambda wandb: os.environ.get('WANDB_MODE') in ('offline', 'disabled') or wandb.login(prompt=False))
    if login.it is False:
        say('W&B has no key here (`wandb login`, or WANDB_API_KEY); the metrics are in metrics.jsonl')
    return bool(login.it)


# The screen


# What stands for a sign that a terminal cannot show.
PLAIN = str.maketrans({
    '–': '-', '—': '-', '−': '-', '…': '...', '’': "'", '‘': "'", '“': '"', '”': '"', '×': 'x', '·': '-', '±': '+-',
    '→': '->', '≥': '>=', '≤': '<=', 'β': 'beta', 'π': 'pi', '§': 'section ', '½': '1/2', '█': '#', '━': '-', '╸': '-',
    '╺': '-', '│': '|', '─': '-',
})  # fmt: skip


class Screen(io.TextIOBase):
    """Standard output, or standard error, as a stream that stops no run: where it cannot be written to, as into a pipe that
    was closed or a terminal that is gone, what is said is lost, and the run goes on.
    """

    def __init__(self, name: str):
        self._name = name

    @property
    def _stream(self) -> TextIO | None:  # asked each time, as tests and notebooks put another one in its place
        stream = getattr(sys, self._name)
        return getattr(stream, 'rich_proxied_file', stream)  # a live bar has what is printed come to us first

    @property
    def encoding(self) -> str:
        return getattr(self._stream, 'encoding', None) or 'utf-8'

    def write(self, text: str) -> int:
        if self._name == 'stdout' and not hosts.first():
            return len(text)
        with suppress(OSError, ValueError):  # ValueError: it was closed
            if self._stream:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream:
                self._stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):  # what is still to be written goes nowhere, also as Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def __del__(self) -> None:
        pass  # it holds nothing to close, and as Python ends there is no `sys` to ask

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError('there is no such stream')
        return self._stream.fileno()


def _plain_signs(error: UnicodeError) -> tuple[str, int]:
    """A codec's way out: other signs for those that the encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end].translate(PLAIN)
    return signs.encode(error.encoding, 'replace').decode(error.encoding), error.end


codecs.register_error('rlaif_jax.signs', _plain_signs)


def show_any_sign(*streams: TextIO | None) -> None:
    """Lets text streams write, in place of a sign that their encoding lacks, another."""
    for stream in streams:
        if hasattr(stream, 'reconfigure') and stream.errors != 'rlaif_jax.signs':
            stream.reconfigure(errors='rlaif_jax.signs')


@functools.cache
def console() -> Console:
    """The one console that everything goes through, on stdout; 120 columns wide where there is no terminal to ask, 80 where
    that knows of none.

    A notebook's `!python …` has one by name only: it shows all that is written and moves no cursor, so a live bar would
    fill the cell with thousands of lines. What notebooks set for their processes, JPY_PARENT_PID, gives it away.
    """
    return _console('stdout')


def _console(name: str) -> Console:
    show_any_sign(getattr(sys, name))
    screen = Screen(name)
    terminal = screen.isatty() and 'JPY_PARENT_PID' not in os.environ
    return Console(
        file=screen, highlight=False, width=_width(screen, terminal), force_terminal=terminal, force_jupyter=False
    )


def _width(screen: Screen, terminal: bool) -> int | None:
    """Columns of the screen; None for those of a terminal, which may change. Less than `NARROW` is nobody's screen, but
    what containers and services say.
    """
    asked = os.environ.get('COLUMNS', '')
    if asked.isdecimal() and int(asked) >= NARROW:
        return int(asked)
    if not terminal:
        return 120
    with suppress(OSError, ValueError):
        if os.get_terminal_size(screen.fileno()).columns >= NARROW and not asked:
            return None
    return 80


_endings: list[list[str]] = []  # of each `ending` that is open: what was printed since the last progress bar


def show(*what: RenderableType) -> None:
    """Prints to the one console: above a live progress bar, and for `ending` to keep."""
    console().print(*what)
    for kept in _endings:
        page = Console(file=io.StringIO(), width=console().width, highlight=False, color_system=None)
        page.print(*what)
        kept.append(page.file.getvalue())


@contextmanager
def ending(path: Path) -> Iterator[None]:
    """Writes to `path`, once the work inside is done, what it printed behind its last progress bar: what it found."""
    kept: list[str] = []
    _endings.append(kept)
    try:
        yield
        write_whole(path, ''.join(kept))
    finally:
        _endings.pop()


def say(text: str, style: str = '', whole: bool = False) -> None:
    """Prints text, above a live progress bar, and with no markup read into it. A terminal gets its long lines wrapped
    between words; one that is `whole`, such as a command to copy, and what goes into a file or a pipe, stays one line.
    """
    console().print(_text(text if whole else _wrapped(text, console()), style), soft_wrap=True)
    for kept in _endings:
        kept.append(f'{_text(text)}\n')


def entry(name: str, text: str) -> None:
    """Prints text beside its name, wrapped in a column of its own where `say` would wrap it."""
    say(_beside(name, text, console().width if console().is_terminal else sys.maxsize), whole=True)


@functools.cache
def say_once(text: str) -> None:
    """`say`, the first time in a process that this is said."""
    say(text)


def error(text: str) -> None:
    """Prints one message to stderr, wrapped as `say` does."""
    stderr = _console('stderr')
    who = 'error' if hosts.first() else f'error, process {hosts.index()}'
    stderr.print(_text(_wrapped(f'{who}: {text}', stderr)), soft_wrap=True)


def _wrapped(text: str, on: Console) -> str:
    """`text` with line ends where a terminal would tear words; longer words, such as paths, are left to it."""
    if not on.is_terminal:
        return text
    return '\n'.join(line for long in text.split('\n') for line in _lines(long, on.width))


def _lines(text: str, width: int, most: int | None = None, tear: bool = False) -> list[str]:
    """The lines of one, all as deep as it is; one that fits as it stands. `most` lines are kept; a word longer than a line
    stays whole unless they may `tear` it.
    """
    if len(text) <= width:
        return [text]
    indent = ' ' * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=tear, break_on_hyphens=False, max_lines=most,
        placeholder=' …',
    )  # fmt: skip


def sample_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], lines: Mapping[str, int] | None = None
) -> None:
    """Prints texts, a block of lines a row with the name before each text; a row without a column leaves it out.

    Of a column in `lines` only so many are shown, and no line ends of its own.
    """
    before = max(map(len, columns)) + 2
    say(title, 'bold')
    for row in rows:
        for name in [name for name in columns if name in row]:
            text = f'{row[name]:.3f}' if isinstance(row[name], float) else _figure(row[name])
            most = (lines or {}).get(name)
            text = ' '.join(text.split()) if most else text.strip()  # policies begin with a space
            say(_beside(f'{name:{before}}', text, console().width, most, tear=True), whole=True)
        say('')


def _beside(name: str, text: str, width: int, most: int | None = None, tear: bool = False) -> str:
    """`name`, and the lines of `text` in a column beside it."""
    parts = [
        part for line in text.split('\n') for part in _lines(line, width - len(name), most=most, tear=tear) or ['']
    ]
    return name + ('\n' + ' ' * len(name)).join(parts)


def figures_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table of numbers, four digits each; the first column names the rows. None is a dash.

    Where it is wider than the screen a row becomes a block of lines instead, one for each column.
    """
    cells = [[_figure(cell) for cell in row] for row in rows]
    table = grid(columns, cells)
    say(title, 'bold')
    if fits(table):
        show(table, '')
        return
    longest = max(map(len, columns))
    for name, *row in cells:
        say(f'{columns[0]}: {", ".join(name.splitlines())}')
        for column, cell in zip(columns[1:], row):
            entry(f'  {column:{longest}}  ', cell)
    say('')


def grid(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, named: bool = False, width: int = 0, **layout: Any
) -> Table:
    """A table of texts. Numbers are put to the right; where rows are `named`, all but the first column, on the last line of
    their row. A column's name is folded at `width`, or is about as wide as what stands below it; `layout` is rich's.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, **({'padding': (0, 1, 0, 0), 'pad_edge': False} | layout))
    found = list(zip(*rows)) or [()] * len(columns)
    heads = [[name] if named and not i else _head(name, found[i], width) for i, name in enumerate(columns)]
    for i, (head, cells) in enumerate(zip(heads, found)):
        above = [''] * (max(map(len, heads)) - len(head))
        is_number = i > 0 if named else all(cell == 'nan' or cell[:1] in {*'0123456789+-–<~'} for cell in cells)
        table.add_column(
            _text('\n'.join(above + head)), justify='right' if is_number else 'left', overflow='fold',
            no_wrap=i > 0 or not named, vertical='bottom' if named and i else 'top',
        )  # fmt: skip
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def fits(table: Table) -> bool:
    """Whether the screen is as wide as a table."""
    return console().measure(table, options=console().options.update(max_width=10_000)).maximum <= console().width


def _head(name: str, cells: Sequence[str], width: int) -> list[str]:
    """The lines of a column's name."""
    below = max([6, *(len(line) for cell in cells for line in cell.split('\n'))])
    return textwrap.wrap(name, width or below, break_long_words=False, break_on_hyphens=bool(width))


def _figure(cell: Any) -> str:
    if cell is None:
        return '-'
    if isinstance(cell, str | numbers.Integral):
        return str(cell)
    return f'{cell:.4g}' if hasattr(cell, '__float__') else str(cell)


def _text(text: str, style: str = '') -> Text:
    """`text` as it stands: a sample's `[b]` is no markup, and its control characters do not reach the terminal."""
    return Text(''.join(c if c.isprintable() or c in '\n\t' else ascii(c)[1:-1] for c in text), style)


class Bar:
    """A piece of work being done: `advance` once a unit, with the latest numbers as `text`."""

    def __init__(self, description: str, total: int, start: int, live: Progress | None):
        self._description, self._total, self._start, self._live = description, total, start, live
        self._done, self._first, self._began = start, 0.0, time.monotonic()
        self._printed = self._began
        if live:
            self._task = live.add_task(description, total=total, completed=start, text=Text(FIRST))
        elif start < total:
            say(f'{description} {start}/{total}  {FIRST}')

    def advance(self, text: str = '') -> None:
        self._done += 1
        if self._done == self._start + 1:  # which compiled: what is left will not take as long
            self._first = time.monotonic()
        if self._live:
            self._live.update(self._task, advance=1, text=_text(text))
        elif time.monotonic() - self._printed >= PLAIN_SECONDS or self._done == self._total:
            now = self._printed = time.monotonic()
            speed = (self._done - self._start - 1) / max(now - self._first, 1e-9)
            left = f'{_rate(speed)}  {max(self._total - self._done, 0) / speed:.0f} s left  ' if speed else ''
            say(f'{self._description} {self._done}/{self._total}  {left}{text}'.rstrip())

    def tell(self, left: threading.Event) -> None:
        """Prints a line, in a thread of its own, for each ten seconds in which none was printed, until the event."""
        seen = self._printed
        while not left.wait(PLAIN_SECONDS):
            if self._printed == seen:
                took = time.monotonic() - self._began
                say(f'{self._description} {self._done}/{self._total}  {took:.0f} s so far')
            seen = self._printed


@contextmanager
def progress(description: str, total: int, start: int = 0) -> Iterator[Bar]:
    """Shows `total` units of work of which `start` are done: a live bar on a terminal, else a line each ten seconds."""
    if not console().is_terminal:
        bar, left = Bar(description, total, start, None), threading.Event()
        telling = threading.Thread(target=bar.tell, args=[left], name='progress', daemon=True)
        telling.start()
        try:
            yield bar
        finally:
            left.set()
            telling.join()
        _forget()
        return
    kinds = MofNCompleteColumn, _RateColumn, TimeElapsedColumn, TimeRemainingColumn
    figures = [kind(table_column=Column(no_wrap=True)) for kind in kinds]
    bar = BarColumn(bar_width=console().width // 6)
    columns = TextColumn('{task.description}', markup=False), bar, *figures, _LatestColumn()
    with Progress(*columns, console=console()) as live:
        try:
            yield Bar(description, total, start, live)
        except SystemExit:  # somebody stopped it, and has read where
            live.live.transient = True
            raise
    _forget()


def _forget() -> None:
    for kept in _endings:
        kept.clear()


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed) if speed else '')


class _LatestColumn(ProgressColumn):
    """The one column that gives way where a line is too long."""

    def render(self, task: Task) -> Text:
        text = task.fields['text'].copy()
        text.no_wrap, text.overflow = True, 'ellipsis'
        return text


def _rate(speed: float) -> str:
    """Units a second in words: '3.2 it/s', or for slow ones '4.1 s/it'."""
    return f'{speed:.1f} it/s' if speed >= 1 else f'{1 / speed:.1f} s/it'
