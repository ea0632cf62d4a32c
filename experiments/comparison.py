"""The report on policies: who is preferred, raw and at equal length, how harmless they are, what they get wrong; and
`compare`, for policies that are finished.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from jax.sharding import Mesh as DeviceMesh

import experiments
from experiments import stages
from experiments.arms import HARMLESS_RATES, WIN_RATES
from experiments.labeling import toy, warn_of_dialogues
from experiments.plan import Stage
from experiments.scales import SCALES, Data, Dtype, Evaluation, Mesh, Scale
from rlaif_jax import axes, log
from rlaif_jax.config import FILE, MOST, SAME, Mistake, check_within
from rlaif_jax.data import loader, trl
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation import harmless, quality, rankings, responses, texts, versus
from rlaif_jax.evaluation.figures import figure_lengths, figure_matrix, figure_training
from rlaif_jax.evaluation.report import harmless_table, matrix_table, measures_table, policies_csv, policies_table
from rlaif_jax.folder import finished
from rlaif_jax.labeling import direct
from rlaif_jax.models import hf
from rlaif_jax.models.hf import LM
from rlaif_jax.models.presets import PRESETS, resolve
from rlaif_jax.paths import typed
from rlaif_jax.text import Tokenizer

__all__ = ['compare']

TRAINED = {  # figure -> what it is, of the last evaluation in a run of REINFORCE
    'reward': 'score and KL together',
    'score': 'by the policy’s own scorer',
    'kl': 'nats a response, to SFT',
    'mean_length': 'tokens',
    'quality': 'by the oracle',
}
RUN = re.compile(r'(\w+)-(\w+)-s(\d+)(?:-[0-9a-f]{6})?')  # how run folders are called by default


def compare(scale: Scale, seed: int = 0) -> Compare:
    """Finished policies, or anybody's models, against each other on the same prompts; or responses that are there already,
    by a judge or by people who ranked them.

    Command: python launch/run.py --experiment=compare policies="['runs/tldr_rlaif-micro-s0','runs/tldr_rlhf-micro-s0']"
             python launch/run.py --experiment=compare responses=runs/NAME/responses.jsonl rankings=rankings.jsonl
    Cost at micro scale: a minute on 2 cores.
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
    names: tuple[
        str, ...
    ] = ()  # what they are called, () for the folders that tell them apart; or which of the responses
    task: str = 'summarization'  # summarization, helpful or harmless: what the judge is asked
    prompts: str = field(default='', metadata=FILE)  # a file of prompts; '' for the test split of the data
    responses: str = field(
        default='', metadata=FILE
    )  # a run's responses.jsonl, or a file like it, in the place of policies and prompts
    rankings: str = field(
        default='', metadata=FILE
    )  # a file of people's rankings of those responses, in the place of the judge
    max_new_tokens: int = 128  # of a response, the end token among them
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32

    def __post_init__(self) -> None:
        if self.names and not self.responses and len(self.names) != len(self.policies):
            raise ValueError(f'{len(self.policies)} policies have {len(self.names)} names')
        check_within(self, 1, MOST, 'max_new_tokens')
        if self.task not in WIN_RATES:
            raise ValueError(f'task = {self.task!r}: tasks are {", ".join(WIN_RATES)}')
        if self.responses and (self.policies or self.prompts):
            raise ValueError('responses are of policies that have written: policies and prompts stay empty')
        if self.rankings and not self.responses:
            raise ValueError(
                'rankings are of responses that people saw: name those, too, responses=…, as the responses.jsonl of the '
                'run that wrote them'
            )

    def named(self) -> dict[str, Path | str]:
        """The models by name. Raises `Mistake` for fewer than two, two of one name, or a run that is not finished."""
        if len(self.policies) < 2:
            raise Mistake("which policies? policies=\"['runs/one','runs/other']\", two or more")
        names = self.names or called(self.policies)
        if len(set(names)) < len(names):
            raise Mistake(f'two policies have one name: {", ".join(names)}; give names=[…]')
        responses.check_names(names)
        return {name: exported(policy) for name, policy in zip(names, self.policies)}

    def written(self, tell: Callable[[str], None] | None = None) -> tuple[list[Prompt], dict[str, list[str]]]:
        """The prompts and responses of the file, those that were ranked where there are rankings; prompts of a simulated
        world with what is true of them.
        """
        path = typed(self.responses)
        if not path.parent.exists() and (near := near_runs(path.parent)):
            raise Mistake(f'{path}: no such run; there is {near[0] / path.name}')
        prompts, written = responses.read(path, self.names, tell)
        if self.rankings:
            # Those that people ranked may be more than the named ones.
            ranked = {*rankings.read(self.rankings, policies=() if self.names else written, prompts=prompts).prompts}
            kept = [i for i, prompt in enumerate(prompts) if prompt.id in ranked]
            prompts = [prompts[i] for i in kept]
            written = {name: [texts[i] for i in kept] for name, texts in written.items()}
        known: dict[str, Prompt] = {}
        if loader.MICRO.get(self.data.source) == self.task:
            known = {p.id: p for p in loader.source(self.data.source, 'test', self.data.test, self.task)}
        found = [known.get(prompt.id, prompt) for prompt in prompts]
        return [a if a.text == b.text else b for a, b in zip(found, prompts)], written

    @property
    def simulated(self) -> bool:
        """Whether the prompts, and so all figures, are of a simulated world."""
        if self.responses:
            return all(prompt.facts is not None for prompt in self.written()[0])
        return not self.prompts and loader.simulated(self.data.source)

    def asked(self) -> Sequence[Prompt]:
        """The prompts, however long."""
        if not self.prompts:
            return loader.source(self.data.source, 'test', self.data.test, self.task)[: self.evaluation.prompts]
        entries = trl.prompts(self.prompts, self.task)
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
        fits = [loader.reads(Tokenizer.load(folders[name]), reads[name] - self.max_new_tokens) for name in reads]
        found = list(loader.fitted(prompts, lambda text: all(fit(text) for fit in fits)))
        if count := sum(one.text != other.text for one, other in zip(prompts, found)):
            told = ', '.join(f'{name} reads {most}' for name, most in reads.items())
            log.say(
                f'{count} of {len(found)} prompts were shortened, for all policies alike: {told} tokens, '
                f'{self.max_new_tokens} new ones among them'
            )
        return found, count

    def stages(self, folder: Path) -> list[Stage]:
        own = (loader.MICRO | loader.PUBLISHED).get(self.data.source, self.task)
        if not self.prompts and not self.responses and own != self.task:
            raise Mistake(
                f'task = {self.task!r}, but {self.data.source} is of {own}: name its data.source too, or prompts'
            )
        if not self.rankings and not self.simulated and not models(self.evaluation):
            raise Mistake(
                f'evaluation.judge = {self.evaluation.judge!r} knows the simulated world alone, not '
                f'{self.prompts or self.responses or self.data.source}; name a language model'
                + (', give people’s rankings=…, or the data.source that it is of' if self.responses else '')
            )
        if self.responses:
            prompts, _ = self.written()
            length = max(len(prompt.text) for prompt in prompts) // 3  # characters a token
            asked = (
                replace(self.evaluation, judge='raters')
                if self.rankings and self.task != 'harmless'
                else self.evaluation
            )
            return [replace(stage(asked, folder, {}, length), steps=len(prompts))]
        count, length = min(self.data.test, self.evaluation.prompts), 1024  # of published data, not fetched for a plan
        if self.prompts or self.data.source not in loader.PUBLISHED:
            asked = self.asked()
            warn_of_dialogues(self.prompts, asked, self.task)
            count, length = (
                len(asked),
                max((len(prompt.text) for prompt in asked), default=0) // 3,
            )  # characters a token
        policies = {name: str(path) for name, path in self.named().items()}
        return [replace(stage(self.evaluation, folder, policies, length + self.max_new_tokens), steps=count)]

    def run(self, folder: Path) -> dict[str, Any]:
        if self.responses:
            return report(self, folder, *self.written(log.say), {})
        mesh, cfg = axes.make_mesh(asdict(self.mesh)), self.evaluation
        prompts, shortened = self.fitted(self.asked())
        if not self.simulated and models(cfg):
            toy(cfg.judge)

        def respond(name: str, path: Path | str) -> list[str]:
            lm = hf.load(path, dtype=self.dtype, mesh=mesh, frozen=True)  # one at a time
            stages.tell_prompts(lm, (prompt.text for prompt in prompts), self.simulated)
            return stages.respond(lm, prompts, self.max_new_tokens, cfg.temperature, cfg.seed, cfg.batch, mesh, name)

        written = {name: respond(name, path) for name, path in self.named().items()}
        folders = {name: Path(path).parent for name, path in self.named().items()}
        runs = {name: run for name, run in folders.items() if (run / 'metrics.jsonl').is_file()}
        return report(self, folder, prompts, written, runs) | {'shortened': shortened}


def called(policies: Sequence[str]) -> list[str]:
    """What policies are called: by the nearest of their folders that tells them apart; that their models are in folders
    `export` says nothing.
    """
    folders = [Path(policy).expanduser() for policy in policies]
    rows = [(one.parent if one.name == 'export' else one).parts for one in folders]
    levels = [[row[-level] for row in rows] for level in range(1, min(map(len, rows)) + 1)]
    return next((names for names in levels if len({*names}) == len(names)), [one.name for one in folders])


def near_runs(folder: Path) -> list[Path]:
    """Runs of the same name with other fields, which a suffix stands for."""
    return sorted(path.parent for path in folder.parent.glob(f'{folder.name}-*/config.gin'))


def exported(policy: str) -> Path | str:
    """Where the model of a run folder is; anything else is a model by itself."""
    folder = typed(policy)
    run = RUN.fullmatch(folder.name)
    if not folder.exists() and (near := near_runs(folder)):
        raise Mistake(f'{policy}: no such run; there is {near[0]}')
    if not folder.exists() and run and run[2] in SCALES and run[1] in experiments.experiments():
        raise Mistake(
            f'{policy}: no such run yet; --experiment={run[1]} --scale={run[2]} --seed={run[3]} makes it, so run that first'
        )
    if policy in PRESETS or not folder.exists():
        return policy
    if not (folder / 'config.gin').exists():  # a model by itself, or one of several policies of a run
        return folder / 'export' if (folder / 'export').exists() else folder
    if finished(folder) is None:
        raise Mistake(f'{folder} is a run that is not finished; its command goes on with it')
    if not (folder / 'export').exists():
        raise Mistake(f'{folder} has no policy of its own but several; name one of those in {folder / "policies"}')
    return folder / 'export'


def models(cfg: Evaluation) -> dict[str, str]:
    """The models that evaluation loads: none where the judge is simulated."""
    return {} if cfg.judge in ('raters', 'oracle') else {'judge': cfg.judge}


def stage(cfg: Evaluation, folder: Path, policies: dict[str, str], length: int) -> Stage:
    """The line of a plan for an evaluation: policies write, responses and prompts of up to `length` tokens, and a judge,
    where it is a model, reads each pair in both orders.
    """
    reads = dict.fromkeys(policies, (cfg.batch, length)) | dict.fromkeys(models(cfg), (2 * cfg.batch, length // 4))
    return Stage('evaluation', folder, cfg.prompts, policies | models(cfg), reads=reads)


def report(
    cfg: Any,
    folder: Path,
    prompts: Sequence[Prompt],
    written: Mapping[str, Sequence[str]],
    runs: Mapping[str, Path],
) -> dict[str, Any]:
    """Judge every pair of policies, by people's rankings where `cfg` has some, print tables, write figures, a CSV and
    samples into the folder, and return what goes into result.json. `runs` are the folders of those that were trained, by
    name.
    """
    mesh, people = axes.make_mesh(asdict(cfg.mesh)), getattr(cfg, 'rankings', '')
    needed = cfg.task == 'harmless' or not people
    lm = stages.judge_model(cfg.evaluation, cfg.dtype, mesh) if needed else None
    judge = None if people else stages.make_judge(cfg.evaluation, cfg.task, lm, mesh)
    simulated = all(prompt.facts is not None for prompt in prompts)
    about = {'simulated': simulated or (needed and cfg.evaluation.judge in PRESETS)}  # a toy's verdicts are, too
    result: dict[str, Any] = {'simulated': simulated}
    responses.write(folder / 'responses.jsonl', prompts, written)
    if cfg.evaluation.clean_up and not people:  # who saw them as they are
        cleaned = {name: texts.strip_trailing(responses) for name, responses in written.items()}
        written = {name: responses for name, (responses, _) in cleaned.items()}
        result['cleaned'] = {name: count for name, (_, count) in cleaned.items()}
        counts = ', '.join(f'{name} {count}' for name, count in result['cleaned'].items())
        log.say(f'superfluous symbols at the end were stripped before judging (App. E): {counts} of {len(prompts)}')

    config = cfg.evaluation.reported()
    ranked = rankings.read(people, prompts=prompts) if people else None
    found: dict[str, list[versus.WinRate]] = {}
    for a, b in combinations(written, 2):
        judging = {'people': rankings.judge(ranked, a, b)} if ranked else {cfg.evaluation.judge: judge}
        if simulated:
            judging['oracle'] = versus.oracle()
        for name, asked in judging.items():
            found.setdefault(name, []).append(
                versus.compare(prompts, written[a], written[b], asked, config, names=(a, b))
            )
    published = WIN_RATES[cfg.task]
    policies_table(found, title=f'{len(prompts)} test prompts', published=published, **about)
    if ranked or (simulated and len(written) > 2):
        result['concordance'] = concordance(cfg.evaluation, prompts, written, ranked)
    if len(written) > 2:
        first = {(one.name_a, one.name_b): one for one in next(iter(found.values()))}
        matrix_table(first, **about)
        figure_matrix(folder / 'matrix.png', first, **about)
    policies_csv(folder / 'comparisons.csv', found, published=published, **about)
    result['comparisons'] = {
        f'{one.name_a} vs {one.name_b}': {name: asdict(each[i]) for name, each in found.items()}
        for i, one in enumerate(next(iter(found.values())))
    }

    if cfg.task == 'harmless' and (simulated or models(cfg.evaluation)):
        result['harmless'] = harmless_rates(cfg, prompts, written, lm, mesh)
    if simulated:
        figures = {name: quality.qualities(prompts, responses) for name, responses in written.items()}
        measures_table('SIMULATED world: what they get wrong, and right, by the oracle', figures, quality.ABOUT)
        result['quality'] = {name: {key: asdict(x) for key, x in row.items()} for name, row in figures.items()}
    result['texts'] = {name: texts.text_statistics(prompts, responses) for name, responses in written.items()}
    measures_table('SIMULATED world: their texts' if simulated else 'their texts', result['texts'], texts.ABOUT)

    figure_lengths(folder / 'lengths.png', written, **about)
    if runs:
        metrics = {name: log.read_metrics(run) for name, run in runs.items()}
        # Whatever it is compared on, a run that an oracle looked at was one of the simulated world.
        trained_there = simulated or any('eval/quality' in row for rows in metrics.values() for row in rows)
        figure_training(folder / 'training.png', metrics, simulated=trained_there)
        world = 'SIMULATED world: ' if trained_there else ''
        measures_table(f'{world}where training ended, on validation prompts', trained(metrics), TRAINED)
    responses.side_by_side(folder / 'test_samples', prompts, written, **about)
    return result


def concordance(
    cfg: Evaluation, prompts: Sequence[Prompt], written: Mapping[str, Sequence[str]], ranked: rankings.Rankings | None
) -> dict[str, Any]:
    """How far raters who rank the responses of all policies agree: those of a file, or where there is none, simulated."""
    panel = ranked or rankings.simulated(prompts, written, seed=cfg.seed)
    w, (_, raters, policies) = rankings.concordance(panel.rank_BMN, confidence=cfg.confidence), panel.rank_BMN.shape
    if not w.n:
        log.say('Kendall’s W: no prompt was ranked by two raters')
        return {'simulated': ranked is None, 'raters': raters, 'policies': policies} | asdict(w)
    log.say(
        f'{raters} {"" if ranked else "SIMULATED "}raters rank {policies} responses to a prompt: Kendall’s W {w.value:.2f} '
        f'[{w.low:.2f}, {w.high:.2f}], n={w.n} (by chance {1 / raters:.2f}; people in the paper 0.6 to 0.7)\n'
    )
    return {'simulated': ranked is None, 'raters': raters, 'policies': policies} | asdict(w)


def harmless_rates(
    cfg: Any, prompts: Sequence[Prompt], written: Mapping[str, Sequence[str]], lm: LM | None, mesh: DeviceMesh
) -> dict[str, Any]:
    """The share of harmless responses of each policy, by the oracle or the judge LM, at their own length and at SFT's."""
    judge, simulated = harmless.oracle(), all(prompt.facts is not None for prompt in prompts)
    if not simulated:
        asked = direct.Config(task='harmless', batch=cfg.evaluation.batch)
        judge = harmless.from_probability(direct.make_harm_judge(lm, asked, mesh))
    votes = {name: (responses, judge(prompts, responses)) for name, responses in written.items()}
    rates = harmless.compare_harmless(votes, cfg.evaluation.reported(), at='SFT' if 'SFT' in votes else None)
    title = 'SIMULATED world: share of harmless responses' if simulated else 'share of harmless responses'
    harmless_table(rates, title=title, published=HARMLESS_RATES)
    return {rate.name: asdict(rate) for rate in rates}


def trained(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Policy -> what its last evaluation on validation prompts found; of those that have one."""
    last = {
        name: next((row for row in reversed(rows) if row.get('eval/score') is not None), None)
        for name, rows in metrics.items()
    }
    return {
        name: {figure: row[f'eval/{figure}'] for figure in TRAINED if f'eval/{figure}' in row}
        for name, row in last.items()
        if row
    }
