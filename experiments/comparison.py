"""The report on policies: who is preferred, raw and at equal length, how harmless they are, what they get wrong; and
`compare`, for policies that are finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from jax.sharding import Mesh as DeviceMesh

from experiments import stages
from experiments.arms import HARMLESS_RATES, WIN_RATES
from experiments.plan import Stage
from experiments.scales import Data, Dtype, Evaluation, Mesh, Scale
from rlaif_jax import axes, checkpoint, log
from rlaif_jax.config import Mistake
from rlaif_jax.data import files, loader
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation import harmless, policies_figures, policies_report, quality, rankings, texts, win_rate
from rlaif_jax.evaluation.statistics import plain
from rlaif_jax.labeling import direct
from rlaif_jax.models import hf
from rlaif_jax.models.presets import PRESETS, resolve
from rlaif_jax.text import Tokenizer

__all__ = ['compare']


def compare(scale: Scale, seed: int = 0) -> Compare:
    """Finished policies, or anybody's models, against each other on the same prompts.

    Command: python launch/run.py --experiment=compare policies="['runs/tldr_rlaif-micro-s0','runs/tldr_rlhf-micro-s0']"
    Expect: every pair's win rate, raw and at equal length, with intervals; figures, a CSV and samples side by side.
    """
    return Compare(
        data=scale.tldr,
        max_new_tokens=scale.reinforce.max_new_tokens,
        evaluation=replace(scale.evaluation, seed=seed),
        mesh=scale.mesh,
        dtype=scale.dtype,
    )


@dataclass(frozen=True)
class Compare:
    """Policies → their responses to the same prompts → every pair judged."""

    data: Data
    evaluation: Evaluation
    policies: tuple[str, ...] = ()  # run folders, Hugging Face directories or hub names; two or more
    names: tuple[str, ...] = ()  # what they are called, () for the names of their folders
    task: str = 'summarization'
    prompts: str = ''  # a file of prompts; '' for the test split of the data
    rankings: str = ''  # a file of people's rankings, in the place of the judge
    max_new_tokens: int = 128
    mesh: Mesh = field(default_factory=Mesh)
    dtype: Dtype = 'float32'

    def __post_init__(self) -> None:
        if self.names and len(self.names) != len(self.policies):
            raise ValueError(f'{len(self.policies)} policies have {len(self.names)} names')

    def named(self) -> dict[str, Path | str]:
        """The models by name. Raises `Mistake` for fewer than two, two of one name, or a run that is not finished."""
        if len(self.policies) < 2:
            raise Mistake("which policies? policies=\"['runs/one','runs/other']\", two or more")
        names = self.names or [Path(policy).name for policy in self.policies]
        if len(set(names)) < len(names):
            raise Mistake(f'two policies have one name: {", ".join(names)}; give names=[…]')
        return {name: exported(policy) for name, policy in zip(names, self.policies)}

    def asked(self) -> Sequence[Prompt]:
        """The prompts, however long."""
        if not self.prompts:
            return loader.source(self.data.source, 'test', self.data.test, self.task)[: self.evaluation.prompts]
        entries = files.prompts(self.prompts, self.task)
        return [entry.record for entry in entries if entry.record is not None][: self.evaluation.prompts]

    def fitted(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], int]:
        """The prompts as every policy can read them, with room for its response, and how many had to be shortened for it.
        All policies get the same text: what is too long for one is shortened for all, as the paper's data is.

        Raises `Mistake` for a policy that has no room for a prompt, and for a long text that is no post and no dialogue.
        """
        folders = {name: resolve(path) for name, path in self.named().items()}
        reads = {name: hf.read_config(folder).max_length for name, folder in folders.items()}
        for name, most in reads.items():
            if most <= self.max_new_tokens:
                raise Mistake(
                    f'{name} was made for {most} tokens; max_new_tokens = {self.max_new_tokens} leaves no prompt'
                )
        fits = [stages.reads(Tokenizer.load(folders[name]), reads[name] - self.max_new_tokens) for name in reads]
        found = list(loader.fitted(prompts, lambda text: all(fit(text) for fit in fits)))
        if count := sum(one.text != other.text for one, other in zip(prompts, found)):
            told = ', '.join(f'{name} reads {most}' for name, most in reads.items())
            log.say(
                f'{count} of {len(found)} prompts were shortened, for all policies alike: {told} tokens, '
                f'{self.max_new_tokens} new ones among them'
            )
        return found, count

    def stages(self, folder: Path) -> list[Stage]:
        if self.prompts and not self.rankings and not models(self.evaluation):
            raise Mistake(
                f'evaluation.judge = {self.evaluation.judge!r} knows the simulated world alone, not {self.prompts}; name a '
                'language model, or give people’s rankings=…'
            )
        shown = models(self.evaluation) | {name: str(path) for name, path in self.named().items()}
        return [Stage('evaluation', folder, len(self.asked()), shown)]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh, cfg, asked = axes.make_mesh(asdict(self.mesh)), self.evaluation, self.asked()
        (prompts, shortened), written = self.fitted(asked), {}
        for name, path in self.named().items():
            lm = hf.load(path, dtype=self.dtype, mesh=mesh, frozen=True)
            written[name] = stages.respond(lm, prompts, self.max_new_tokens, cfg.temperature, cfg.seed, cfg.batch, mesh)
        judge = None if self.rankings else stages.make_judge(cfg, self.task, self.dtype, mesh)
        folders = {name: Path(path).parent for name, path in self.named().items()}
        runs = {name: run for name, run in folders.items() if (run / 'metrics.jsonl').is_file()}
        # A file of rankings may name prompts by their texts, as they are.
        result = report(self, folder, asked if self.rankings else prompts, written, judge, runs)
        return result | {'shortened': shortened}


def exported(policy: str) -> Path | str:
    """Where the model of a run folder is; anything else is a model by itself."""
    folder = Path(policy).expanduser()
    if policy in PRESETS or not folder.exists():
        return policy
    if not (folder / 'config.gin').exists():  # a model by itself, or one of several policies of a run
        return folder / 'export' if (folder / 'export').exists() else folder
    if checkpoint.finished(folder) is None:
        raise Mistake(f'{folder} is a run that is not finished; its command goes on with it')
    if not (folder / 'export').exists():
        raise Mistake(f'{folder} has no policy of its own but several; name one of those in {folder / "policies"}')
    return folder / 'export'


def models(cfg: Evaluation) -> dict[str, str]:
    """The models that evaluation loads: none where the judge is simulated."""
    return {} if cfg.judge in ('raters', 'oracle') else {'judge': cfg.judge}


def report(
    cfg: Any,
    folder: Path,
    prompts: Sequence[Prompt],
    written: Mapping[str, Sequence[str]],
    judge: win_rate.Judge | None,
    runs: Mapping[str, Path],
) -> dict[str, Any]:
    """Judge every pair of policies, print tables, write figures, a CSV and samples into the folder, and return what goes
    into result.json. `judge` None: people's rankings. `runs` are the folders of those that were trained, by name.
    """
    simulated = all(prompt.facts is not None for prompt in prompts)
    about = {'simulated': simulated}
    result: dict[str, Any] = {'simulated': simulated}
    if cfg.evaluation.clean_up:
        cleaned = {name: texts.strip_trailing(responses) for name, responses in written.items()}
        written = {name: responses for name, (responses, _) in cleaned.items()}
        result['cleaned'] = {name: count for name, (_, count) in cleaned.items()}
        counts = ', '.join(f'{name} {count}' for name, count in result['cleaned'].items())
        log.say(f'superfluous symbols at the end were stripped before judging (App. E): {counts} of {len(prompts)}')

    config = win_rate.Config(confidence=cfg.evaluation.confidence)
    ranked = rankings.read(cfg.rankings) if judge is None else None
    found: dict[str, list[win_rate.WinRate]] = {}
    for a, b in combinations(written, 2):
        judging = {'people': rankings.judge(ranked, a, b)} if ranked else {cfg.evaluation.judge: judge}
        if simulated:
            judging['oracle'] = win_rate.oracle()
        for name, asked in judging.items():
            found.setdefault(name, []).append(
                win_rate.compare(prompts, written[a], written[b], asked, config, names=(a, b))
            )
    published = WIN_RATES[cfg.task]
    policies_report.table(found, title=f'{len(prompts)} test prompts', published=published, **about)
    if ranked or (simulated and len(written) > 2):
        result['concordance'] = concordance(cfg.evaluation, prompts, written, ranked)
    if len(written) > 2:
        first = {(one.name_a, one.name_b): one for one in next(iter(found.values()))}
        policies_report.matrix_table(first, **about)
        policies_figures.figure_matrix(folder / 'matrix.png', first, **about)
    policies_report.write_csv(folder / 'comparisons.csv', found, published=published, **about)
    result['comparisons'] = {
        f'{one.name_a} vs {one.name_b}': {name: each[i].as_dict() for name, each in found.items()}
        for i, one in enumerate(next(iter(found.values())))
    }

    if cfg.task == 'harmless' and (simulated or models(cfg.evaluation)):
        result['harmless'] = harmless_rates(cfg, prompts, written, simulated)
    if simulated:
        figures = {name: quality.qualities(prompts, responses) for name, responses in written.items()}
        _table('SIMULATED world: what they get wrong, by the oracle', figures)
        result['quality'] = {name: {key: asdict(x) for key, x in row.items()} for name, row in figures.items()}
    result['texts'] = {name: texts.text_statistics(prompts, responses) for name, responses in written.items()}
    _table('their texts', result['texts'])

    policies_figures.figure_lengths(folder / 'lengths.png', written, **about)
    if runs:
        metrics = {name: policies_figures.read_metrics(run) for name, run in runs.items()}
        policies_figures.figure_training(folder / 'training.png', metrics, **about)
    policies_report.side_by_side(folder / 'test_samples', prompts, written, **about)
    log.say(f'samples side by side, figures and numbers: {folder}')
    return result


def concordance(
    cfg: Evaluation, prompts: Sequence[Prompt], written: Mapping[str, Sequence[str]], ranked: rankings.Rankings | None
) -> dict[str, Any]:
    """How far raters who rank the responses of all policies agree: those of a file, or where there is none, simulated."""
    panel = ranked or rankings.simulated(prompts, written, seed=cfg.seed)
    w, (_, raters, policies) = rankings.concordance(panel.rank_BMN, confidence=cfg.confidence), panel.rank_BMN.shape
    log.say(
        f'{raters} {"" if ranked else "SIMULATED "}raters rank {policies} responses to a prompt: Kendall’s W {w.value:.2f} '
        f'[{w.low:.2f}, {w.high:.2f}], n={w.n} (by chance {1 / raters:.2f}; people in the paper 0.6 to 0.7)\n'
    )
    return plain({'simulated': ranked is None, 'raters': raters, 'policies': policies} | asdict(w))


def harmless_rates(
    cfg: Any, prompts: Sequence[Prompt], written: Mapping[str, Sequence[str]], simulated: bool
) -> dict[str, Any]:
    """The share of harmless responses of each policy, by the oracle or the judge LM, at their own length and at SFT's."""
    judge = harmless.oracle()
    if not simulated:
        mesh: DeviceMesh = axes.make_mesh(asdict(cfg.mesh))
        lm = hf.load(cfg.evaluation.judge, dtype=cfg.dtype, mesh=mesh, frozen=True)
        asked = direct.Config(task='harmless', batch=cfg.evaluation.batch)
        judge = harmless.from_probability(direct.make_harm_judge(lm, asked, mesh))
    votes = {name: (responses, judge(prompts, responses)) for name, responses in written.items()}
    rates = harmless.compare_harmless(
        votes, win_rate.Config(confidence=cfg.evaluation.confidence), at='SFT' if 'SFT' in votes else None
    )
    rows = [
        [*rate.row().values(), ' / '.join(map(str, HARMLESS_RATES[rate.name])) if rate.name in HARMLESS_RATES else '–']
        for rate in rates
    ]
    title = 'SIMULATED world: share of harmless responses' if simulated else 'share of harmless responses'
    log.figures_table(title, [*rates[0].row(), 'paper, %'], rows)
    return {rate.name: rate.as_dict() for rate in rates}


def _table(title: str, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Policies in rows, figures in columns."""
    columns = dict.fromkeys(column for row in figures.values() for column in row)
    cells = [[name, *(_cell(row.get(column)) for column in columns)] for name, row in figures.items()]
    log.figures_table(title, ['policy', *columns], cells)


def _cell(value: Any) -> str:
    return '–' if value is None else f'{value.value if hasattr(value, "value") else value:.2f}'
