"""The page of a finished run, and of a sweep: `report.html`, made of what lies in its folder and of nothing else.

A page that is missing is made again by the same command, and has the same bytes.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import experiments
from experiments import agreement, arms
from experiments.compare import called
from experiments.report import TRAINED, parted, trained
from experiments.scales import scale
from experiments.stages import COST
from rlaif_jax import hosts, log
from rlaif_jax.config import Mistake, digest, dump, parse
from rlaif_jax.data import loader
from rlaif_jax.evaluation import page, people, responses, tables, texts, versus
from rlaif_jax.evaluation.alignment import Alignment
from rlaif_jax.evaluation.harmless import HarmlessRate
from rlaif_jax.evaluation.report import doubts
from rlaif_jax.folder import finish, finished
from rlaif_jax.labeling import cost

PAGE, MADE, JUDGED = 'report.html', 'made.json', 'judged.jsonl'
REPORT = 'report.txt'  # the tables that a run ends with
SHOWN = ('comparisons.csv', 'alignment.csv', 'config.gin', 'result.json', MADE, REPORT)  # for download
PACKAGES = ('rlaif_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'transformers')
PAUSE = 10  # times the usual between two rows of metrics: then the run stood still
T = TypeVar('T')


def make(name: str, config: Any, folder: Path) -> dict[str, Any]:
    """Runs an experiment in a folder that is locked and its own, from where it stands to its page. Returns its result."""
    begin(folder)
    with log.ending(folder / REPORT):
        result = config.run(folder)
    finish(folder, result)
    of_run(name, config, folder)
    return result


def begin(folder: Path) -> None:
    """Writes what a run is made with, once: versions and devices."""
    import jax  # which a sweep, that has a page too, does without

    kinds = [device.device_kind for device in jax.devices()]
    about = {
        'python': platform.python_version(),
        'versions': {name: _version(name) for name in PACKAGES},
        'devices': {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        'processes': hosts.count(),
        'system': f'{platform.system()} {platform.machine()}',
    }
    text = json.dumps(about, indent=1, ensure_ascii=False) + '\n'
    hosts.told(lambda: (folder / MADE).exists() or log.write_whole(folder / MADE, text))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return 'not installed'


def of_run(name: str, config: Any, folder: Path) -> None:
    """Writes the page of a finished run. Where that fails, as when what it ran on is gone by now, it says so and no
    more: the run is finished.
    """

    def write() -> None:
        try:
            page.write(folder / PAGE, _run(name, config, folder))
        except Mistake as mistake:
            log.say(f'there is no {folder / PAGE}: {mistake}')
        except Exception as error:  # whatever it is, no page is worth a run
            log.error(f'there is no {folder / PAGE}: {type(error).__name__}: {error}')

    hosts.told(write)


def _run(name: str, config: Any, folder: Path) -> page.Page:
    if hasattr(config, 'page'):  # made of runs, each of which has one of these
        return config.page(folder)
    result, sections, sentences, samples = finished(folder) or {}, [], [], None
    source = loader.find(config.data.source) if getattr(config, 'data', None) else None
    simulated = bool(result.get('simulated', source is not None and source.simulated))
    # Posts are simulated where the data are; of a comparison, which may be of any file, where an oracle knows them.
    posts = (
        'quality' in result if 'comparisons' in result else source.simulated if source else not hasattr(config, 'input')
    )
    by_people, runs = 'rank_page' in result, _runs(config, folder)
    if told := result.get('comparisons'):
        found = compared(told)
        by_people = 'people' in found
        known = arms.published(config.task)
        ordered = sorted(
            page.sentences(found, simulated=simulated and not by_people).items(), key=lambda one: one[0] not in known
        )
        sentences = [sentence for _, sentence in ordered]  # those that the paper has come first
        sections.append(page.comparisons(found, known))
    rates = result.get('harmless', {})  # of a toy that is made, how often it agrees on that task
    if rates and all(isinstance(rate, Mapping) for rate in rates.values()):
        rows = [again(HarmlessRate, rate) for rate in rates.values()]
        columns = [
            'policy', 'harmless %', 'at equal length %', 'by plain length %', 'characters', 'unscorable', 'paper %',
        ]  # fmt: skip
        paper = {arm.name: arm.harmless for arm in arms.ARMS.values() if arm.harmless} | {'SFT': arms.SFT_HARMLESS}
        cells = [
            [one.name, *map(tables.within, (one.raw, one.length_adjusted, one.plain_ratio)), f'{one.mean_length:.0f}',
             one.unscorable, ' / '.join(map(str, paper.get(one.name, ())))]
            for one in rows
        ]  # fmt: skip
        sections.append(
            page.table('Who does harm', columns, cells, ' '.join(doubts(cell for row in cells for cell in row[2:4])))
        )
    if runs:
        partings = {run: where for run, rows in runs.items() if (where := parted(rows))}
        sections.append(page.curves(runs, partings))
        if ended := trained(runs):
            sections.append(page.measures('Where training ended, on validation prompts', ended, TRAINED))
    if told and (folder / 'responses.jsonl').exists():
        more, samples = _judged(folder, found)
        sections += more
    if figures := result.get('quality'):
        means = {policy: {key: one['value'] for key, one in row.items()} for policy, row in figures.items()}
        about = {key: figure.about for key, figure in source.world.about.items()}
        sections.append(page.measures('What they get wrong, and right, by the oracle', means, about))
    if figures := result.get('texts'):
        sections.append(page.measures('Their texts', figures, texts.ABOUT))
    if told := result.get('alignment'):
        reports = [again(Alignment, one) for one in told.values()]
        sections.insert(0, page.labelers(reports, result.get('published'), result.get('unscorable pairs', {})))
        best = max(reports, key=lambda one: one.agreement.value if one.agreement.n else 0.0)
        sentences.append(
            tables.title(f'{best.name} agrees with people on {tables.within(best.agreement, " %")} of pairs', simulated)
        )
    if told := result.get('against people'):
        beside = [again(people.Against, one) for one in told.values()]
        sections.append(
            page.table('Verdicts and votes, ties among them', agreement.AGAINST, agreement.against_rows(beside))
        )
    if told := result.get('people'):
        among = {name: again(people.Agreeing, one) for name, one in told.items()}
        sections.append(page.table('People with each other', agreement.RATERS, agreement.among_rows(among)))
    if not sections:
        flat = [(' / '.join(path), value) for path, value in _leaves(result)]
        sections.append(page.table('What was found', ['', ''], flat))
    if spent := costs(config, folder, result):
        sections.append(
            page.table('What the labels cost', cost.COLUMNS, spent, f'{cost.EACH} labels of the paper: {cost.PAPERS}.')
        )
    sections.append(made(name, config, folder, stages(config, folder)))
    files = {file: (folder / file).read_text(encoding='utf-8') for file in SHOWN if (folder / file).is_file()}
    about = page.banner(posts=posts, judges=not (posts and by_people)) if simulated else ''
    return page.Page(f'{name}: {folder.name}', sentences, about, sections, samples, files)


def costs(config: Any, folder: Path, result: Mapping[str, Any]) -> list[list[Any]]:
    """What labels cost, those of a run and those of its stages: cells of `cost.COLUMNS`."""
    found = dict(result.get('cost', {}))
    for line in [] if found else _lines(config, folder):
        if (path := line.folder / COST).is_file():
            found[' '.join(filter(None, (line.name, line.of)))] = json.loads(path.read_text(encoding='utf-8'))
    return cost.cells(found)


def _runs(config: Any, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The metrics of every policy that was trained, by name."""
    folders = {one.name: one for one in sorted((folder / 'policies').glob('*'))} or {
        ', '.join(getattr(config, 'arms', ())) or folder.name: folder
    }
    if policies := getattr(config, 'policies', ()):
        folders |= {name: Path(path).expanduser() for name, path in zip(config.names or called(policies), policies)}
    metrics = {name: log.read_metrics(one) for name, one in folders.items() if (one / 'metrics.jsonl').is_file()}
    return {name: rows for name, rows in metrics.items() if any('eval/reward' in row for row in rows)}


def _judged(folder: Path, found: Mapping[str, Sequence[versus.WinRate]]) -> tuple[list[page.Section], dict[str, Any]]:
    """What is about single responses: lengths, votes and samples."""
    prompts, written = responses.read(folder / 'responses.jsonl', _names(found))
    sections, first = [page.lengths(written)], next(iter(found.values()))
    if not (folder / JUDGED).exists():
        return sections, page.samples([(one.id, one.text) for one in prompts], written, {})
    lines = (folder / JUDGED).read_text(encoding='utf-8').split('\n')  # a text may hold other ends of lines
    rows = [json.loads(line) for line in lines if line]
    column = lambda what: {name: [row[what][name] for row in rows] for name in rows[0].get(what, {})}  # noqa: E731
    votes = {
        pair: {judge: [_number(row['votes'][pair][judge]) for row in rows] for judge in by}
        for pair, by in rows[0]['votes'].items()
    }
    of_first = {pair: next(iter(by.values())) for pair, by in votes.items()}
    sections.append(page.against_length(of_first, written, first))
    shown = [(one.id, one.text) for one in prompts]
    return sections, page.samples(shown, written, votes, column('quality'), column('wrong'))


def _names(found: Mapping[str, Sequence[versus.WinRate]]) -> list[str]:
    first = next(iter(found.values()))
    return list(dict.fromkeys(name for one in first for name in (one.name_a, one.name_b)))


def compared(told: Mapping[str, Mapping[str, Any]]) -> dict[str, list[versus.WinRate]]:
    """The comparisons of a result: judge -> its comparisons."""
    found: dict[str, list[versus.WinRate]] = {}
    for judged in told.values():
        for judge, one in judged.items():
            found.setdefault(judge, []).append(again(versus.WinRate, one))
    return found


def again(cls: type[T], told: Mapping[str, Any]) -> T:
    """A dataclass of plain values as a result has them: null is nan where a number belongs, a list is a tuple."""
    values = {}
    for name, hint in typing.get_type_hints(cls).items():
        kinds = typing.get_args(hint) or (hint,)
        inner = next((kind for kind in kinds if is_dataclass(kind)), None)
        value = told.get(name)
        if value is None:
            value = None if type(None) in kinds else math.nan
        elif isinstance(value, list):
            value = tuple(map(_number, value))
        values[name] = again(inner, value) if inner and value is not None else value
    return cls(**values)


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def made(name: str, config: Any, folder: Path, stages: Sequence[Sequence[str]]) -> page.Section:
    """How to repeat a run, and what it is made of, as its folder says."""
    text = (folder / 'config.gin').read_text(encoding='utf-8')
    bound = parse(text)
    plain = parse(dump(experiments.find(name)(scale(bound['scale']))))
    changed = [
        (path, repr(plain.get(path)), repr(value))
        for path, value in bound.items()
        if path in plain and plain[path] != value
    ]
    about = json.loads((folder / MADE).read_text(encoding='utf-8')) if (folder / MADE).exists() else {}
    devices = ', '.join(f'{count} × {kind}' for kind, count in about.get('devices', {}).items())
    facts = {
        'experiment': f'{name}, scale {bound["scale"]}',
        'digest of the config': digest(config, loader.contents(config)),
        'seeds': ', '.join(f'{path} = {value}' for path, value in bound.items() if path.rpartition('.')[2] == 'seed'),
        'devices': devices, 'processes': about.get('processes', ''), 'system': about.get('system', ''),
        'Python': about.get('python', ''),
        'versions': ', '.join(f'{package} {version}' for package, version in about.get('versions', {}).items()),
    }  # fmt: skip
    command = (
        f'python launch/run.py --bindings=config.gin --workdir={folder.name}  # config.gin is among the files below'
    )
    return page.made(changed, [(what, value) for what, value in facts.items() if value != ''], command, stages)


def stages(config: Any, folder: Path) -> list[tuple[str, ...]]:
    """The stages of a run: name, folder, how long it took, what it found."""
    rows = []
    for line in _lines(config, folder):
        told = finished(line.folder) if line.folder != folder else None
        found = ', '.join(
            f'{" / ".join(path)} {value:.4g}' for path, value in _leaves(told or {}) if isinstance(value, float | int)
        )
        rows.append((line.name, line.folder.name, took(line.folder), found[:300]))
    return rows


def _lines(config: Any, folder: Path) -> list[Any]:
    found: dict[Path, Any] = {}
    for line in config.lines(folder):
        found.setdefault(line.folder, line)
    return [*found.values()]


def took(folder: Path) -> str:
    """How long a stage that leaves metrics was at work, pauses left out; '' of others."""
    if not (folder / 'metrics.jsonl').is_file():
        return ''
    times = [row['time'] for row in log.read_metrics(folder) if 'time' in row]
    gaps = sorted(b - a for a, b in itertools.pairwise(times) if b > a)
    if not gaps:
        return ''
    usual = gaps[len(gaps) // 2]
    return str(timedelta(seconds=round(sum(gap for gap in gaps if gap <= PAUSE * usual))))


def _leaves(found: Any, *path: str) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(found, Mapping):
        return [leaf for key, value in found.items() for leaf in _leaves(value, *path, str(key))]
    return [(path, found)] if isinstance(found, int | float | str) and not isinstance(found, bool) else []


def of_sweep(
    folder: Path,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    told: str,
    csv: str,
    commands: Sequence[str],
    simulated: bool,
) -> None:
    """Writes the page of a sweep: its table, every figure of every point for download, and the command of each point."""
    cells = [[f'{cell:.4g}' if isinstance(cell, float) else cell for cell in row] for row in rows]
    sections = [page.table('What was found', columns, cells, told), page.made([], [], '\n'.join(commands), [])]
    about = page.banner(posts=simulated, judges=simulated)
    shown = page.Page(f'Sweep {folder.name}', [title], about, sections, None, {'sweep.csv': csv})
    page.write(folder / PAGE, shown)
