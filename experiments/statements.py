"""What the paper says, table by table, and where a run of ours says the same: data, and what it takes to read it.

Tables are those of arXiv 2309.00267; what has no number there stands under its appendix (`J`), or under a word. Figures
that an experiment prints beside its own are that experiment's, and are taken from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from experiments.arms import ARMS, SFT_HARMLESS, published
from experiments.labeling import BEST, TABLE_2

# What is compared: how often one policy is preferred to another, or a labeler chooses; how often something is right; two
# such shares; a length in per cent of another's; and what is only shown.
Kind = Literal['rate', 'share', 'difference', 'length', 'shown']
# Where one is as good as the other, in per cent or points, and how far from there the paper has to be to prefer one.
EVEN: dict[Kind, tuple[float, float]] = {
    'rate': (50, 4), 'share': (50, 4), 'difference': (0, 1), 'length': (100, 4), 'shown': (0, 0)
}  # fmt: skip
MORE, LESS = math.inf, -math.inf  # of which the paper prints no number
Path = tuple[str | int, ...]  # keys into a result; a number counts what is there, from 0


@dataclass(frozen=True)
class Statement:
    """One row of a table."""

    says: str
    kind: Kind
    paper: float | None  # per cent, or points; None where it has no figure
    part: str = ''  # the experiment whose result has ours; '' where none has
    at: Path = ()  # where in the result
    than: Path = ()  # and what it is compared with, of a difference
    why: str = ''  # there is none

    @property
    def claims(self) -> bool:
        """Whether it says that one thing is better, or as good as another: a share by itself does not."""
        return self.kind in ('rate', 'difference', 'length') and self.paper is not None


@dataclass(frozen=True)
class Table:
    """A table of the paper, or what it says in an appendix."""

    key: int | str  # as `tables=` names it
    title: str
    statements: tuple[Statement, ...] = ()
    why: str = ''  # it has none
    told: str = ''  # what else a reader should know


def rate(part: str, a: str, b: str, paper: float | None, which: str = 'raw') -> Statement:
    """How often a is preferred to b, by whoever judges first."""
    of = {'helpful': 'helpful: ', 'harmless': 'harmless: '}.get(part.partition('_')[0], '')
    says = f'{of}{a} preferred to {b}' + ', at equal length' * (which != 'raw')
    return Statement(says, 'rate', paper, part, ('comparisons', f'{a} vs {b}', 0, which))


def share(part: str, says: str, paper: float | None, *at: str | int) -> Statement:
    return Statement(says, 'share', paper, part, at)


def difference(part: str, says: str, paper: float | None, at: Path, than: Path) -> Statement:
    return Statement(says, 'difference', paper, part, at, than)


def both(part: str, task: str, *pairs: tuple[str, str], even: bool = False) -> tuple[Statement, ...]:
    """The win rates of some pairs: raw, or at equal length by the paper's plain ratio."""
    known = published(task)
    return tuple(rate(part, *pair, known[pair][even], 'plain_ratio' if even else 'raw') for pair in pairs)


def raw_and_even(part: str, *pairs: tuple[str, str]) -> tuple[Statement, ...]:
    return both(part, 'summarization', *pairs) + both(part, 'summarization', *pairs, even=True)


MAIN = (
    ('RLAIF', 'SFT'), ('RLHF', 'SFT'), ('RLAIF', 'RLHF'), ('same-size RLAIF', 'SFT'), ('d-RLAIF', 'SFT'),
    ('d-RLAIF', 'same-size RLAIF'),
)  # fmt: skip
HELPFUL = (('RLAIF', 'SFT'), ('RLHF', 'SFT'), ('RLAIF', 'RLHF'))
BETAS = (0.0, 0.05, 0.2)  # that `paper` tries
HARMLESS = {'SFT': SFT_HARMLESS} | {name: arm.harmless for name, arm in ARMS.items() if arm.harmless}


def harmless(which: Literal['raw', 'plain_ratio']) -> tuple[Statement, ...]:
    """Shares of harmless responses, and what feedback adds to them."""
    part, paper = 'harmless_rlaif', {name: both[which != 'raw'] for name, both in HARMLESS.items()}
    of, at = 'harmless: ', ', at equal length' * (which != 'raw')
    shares = [share(part, f'{of}{name}{at}', figure, 'harmless', name, which) for name, figure in paper.items()]
    pairs = (('RLHF', 'SFT'), ('RLAIF', 'SFT'), ('RLAIF', 'RLHF'))
    return (*shares, *(
        difference(part, f'{of}{a}, beside {b}{at}', paper[a] - paper[b], ('harmless', a, which), ('harmless', b, which))
        for a, b in pairs
    ))  # fmt: skip


def agreement(part: str, says: str, paper: float, cell: str | int) -> Statement:
    return share(part, says, paper, 'alignment', cell, 'agreement')


def techniques() -> tuple[Statement, ...]:
    """Table 2: every cell, and what each task's best technique adds to the simplest."""
    part, rows = 'labeling_techniques', []
    cell = lambda task, technique: ('alignment', f'{task} {technique}', 'agreement')  # noqa: E731
    for task, figures in TABLE_2.items():
        rows += [
            agreement(part, f'{task}: {technique}', figure, f'{task} {technique}')
            for technique, figure in figures.items()
            if figure
        ]
        for better, than in ((BEST[task], 'base_0shot'), ('detailed_2shot', 'detailed_0shot')):
            gain = round(figures[better] - figures[than], 1)
            says = f'{task}: {better}, beside {than}'
            rows.append(difference(part, says, gain, cell(task, better), cell(task, than)))
    few, none = 'summarization detailed_8shot', 'summarization detailed_0shot'
    says, gain = 'summarization: detailed_8shot, beside detailed_0shot', round(69.8 - 77.4, 1)
    return (*rows, difference(part, says, gain, ('alignment', few, 'agreement'), ('alignment', none, 'agreement')))


def sizes() -> tuple[Statement, ...]:
    """Table 3: three labelers, smallest first, as `labeling_sizes` asks them."""
    part, figures = 'labeling_sizes', {'XS': 62.7, 'S': 73.8, 'L': 78.0}
    at = {name: ('alignment', i, 'agreement') for i, name in enumerate(figures)}
    rows = [share(part, f'labeler {name} agrees with people', figure, *at[name]) for name, figure in figures.items()]
    return (*rows, *(
        difference(part, f'labeler {a}, beside {b}', round(figures[a] - figures[b], 1), at[a], at[b])
        for a, b in (('L', 'S'), ('S', 'XS'))
    ))  # fmt: skip


def positions() -> tuple[Statement, ...]:
    """Table 4: how often a labeler stays with a position when the responses are swapped, and with which."""
    part, same, first = 'labeling_sizes', {'XS': 56, 'S': 21, 'L': 18}, {'XS': 1, 'S': 9, 'L': 94}
    at = {name: ('alignment', i, 'position', 'same') for i, name in enumerate(same)}
    rows = [share(part, f'{name} stays with a position', same[name], *at[name]) for name in same]
    rows += [
        difference(part, f'stays with a position: {a}, beside {b}', same[a] - same[b], at[a], at[b])
        for a, b in (('XS', 'S'), ('S', 'L'))
    ]
    said = 'where {} stays, it is with the first one'
    return (*rows, *(
        Statement(said.format(name), 'rate', first[name], part, ('first position', i)) for i, name in enumerate(first)
    ))  # fmt: skip


def accuracy(arm: str) -> Path:
    """How often a reward model agrees with people, on all pairs."""
    return ('reward models', arm, 'all', 'accuracy')


def by_feedback() -> tuple[Statement, ...]:
    """Table 5."""
    rows = []
    for task, part in (('summarization', 'tldr_rm_ai'), ('helpful', 'helpful_rm'), ('harmless', 'harmless_rm')):
        paper = {name: ARMS[name].accuracy[task] for name in ('RLHF', 'RLAIF')}
        says = {'RLHF': f'{task}: of votes of people', 'RLAIF': f'{task}: of labels'}
        rows += [share(part, says[name], paper[name], *accuracy(name)) for name in paper]
        gain = round(paper['RLHF'] - paper['RLAIF'], 1)
        rows.append(difference(part, f'{task}: of votes, beside labels', gain, accuracy('RLHF'), accuracy('RLAIF')))
    return tuple(rows)


def by_labels() -> tuple[Statement, ...]:
    """Table 7."""
    part, names = 'tldr_rm_ai', {'RLAIF': 'the best technique', 'base-prompt RLAIF': 'Base 0-shot'}
    names['same-size RLAIF'] = 'a labeler of the policy’s size'
    paper = {name: ARMS[name].accuracy['summarization'] for name in names}
    rows = [share(part, f'labels of {names[name]}', paper[name], *accuracy(name)) for name in names]
    return (*rows, *(
        difference(
            part, f'labels of {names[name]}, beside the best technique', round(paper[name] - paper['RLAIF'], 1),
            accuracy(name), accuracy('RLAIF'),
        )
        for name in list(names)[1:]
    ))  # fmt: skip


def self_consistency() -> tuple[Statement, ...]:
    """Table 14: 16 sampled rationales beside a greedy one, by temperature; the study has 4 of them before 16."""
    part, paper = 'labeling_self_consistency', {0.3: 76.2, 0.5: 75.1, 0.7: 74.0, 1.0: 72.8}
    greedy = ('alignment', 0, 'agreement')
    at = {temperature: ('alignment', 5 + i, 'agreement') for i, temperature in enumerate(paper)}
    rows = [share(part, 'one greedy rationale', 78.0, *greedy)]
    rows += [share(part, f'16 rationales at {t}', figure, *at[t]) for t, figure in paper.items()]
    return (*rows, *(
        difference(part, f'16 rationales at {t}, beside a greedy one', round(paper[t] - 78.0, 1), at[t], greedy)
        for t in paper
    ))  # fmt: skip


def examples() -> tuple[Statement, ...]:
    """The first version's study. `rm_examples` has labels of 128, of a twentieth and of all pairs; then votes."""
    part, at = 'rm_examples', [('reward models', i, 'all', 'accuracy') for i in range(6)]
    return (
        share(part, 'labels, 128 pairs', 60, *at[0]),
        difference(part, 'labels: all pairs, beside a twentieth', 0, at[2], at[1]),
        difference(part, 'labels: all pairs, beside 128', MORE, at[2], at[0]),
        difference(part, 'votes of people: all pairs, beside a twentieth', MORE, at[5], at[4]),
    )


def length(a: str, b: str) -> Statement:
    mean = {'SFT': 132, 'RLHF': 161, 'RLAIF': 164}  # characters
    says, paper = f'length of {a}, % of {b}', round(100 * mean[a] / mean[b], 1)
    return Statement(says, 'length', paper, 'tldr_table1', ('lengths', f'{a} vs {b}'))


def beta() -> tuple[Statement, ...]:
    return tuple(rate('rl_kl', f'reinforce.beta={beta}', 'SFT', None) for beta in BETAS)


TABLES = (
    Table(
        1,
        'Who is preferred, and who is harmless',
        (
            *both('tldr_table1', 'summarization', *MAIN),
            *(Statement(f'{name} preferred to the reference', 'rate', paper, why='no run asks raters about references')
              for name, paper in (('RLAIF', 79), ('RLHF', 80))),
            *both('helpful_rlaif', 'helpful', *HELPFUL),
            *both('helpful_direct', 'helpful', ('d-RLAIF', 'SFT')),
            *harmless('raw'),
        ),
    ),
    Table(2, 'The labeler by technique', techniques()),
    Table(3, 'The labeler by size', sizes()),
    Table(4, 'What a position does to a labeler', positions()),
    Table(5, 'Reward models by feedback', by_feedback()),
    Table(
        6,
        'Reward models by where they start',
        (
            share('rm_init', 'votes of people, from the base model', 79.3, 'reward models', 0, 'all', 'accuracy'),
            share('rm_init', 'votes of people, from SFT', 78.7, 'reward models', 1, 'all', 'accuracy'),
            difference(
                'rm_init', 'votes of people: from the base model, beside SFT', 0.6,
                ('reward models', 0, 'all', 'accuracy'), ('reward models', 1, 'all', 'accuracy'),
            ),
            Statement('labels: from the base model, beside SFT', 'difference', -1.2, why='labels start from SFT here'),
        ),
    ),
    Table(7, 'Reward models by who labels, and how', by_labels()),
    Table(14, 'Several rationales against a greedy one', self_consistency()),
    *(Table(number, 'A labeling prompt', why='a text, and no result; ours are our own (docs/differences.md)')
      for number in (15, 16, 17, 18, 21, 22)),
    Table(
        23,
        'Qualitative: what RLHF makes up (Tables 23 and 24)',
        (
            difference(
                'tldr_table1', 'responses that state something wrong: RLHF, beside RLAIF', MORE,
                ('quality', 'RLHF', 'hallucination'), ('quality', 'RLAIF', 'hallucination'),
            ),
            Statement('RLAIF is less grammatical than RLHF', 'difference', MORE, why='nobody here knows grammar'),
        ),
        told='What is stated wrong is known in the simulated world alone. The samples of the run show it.',
    ),
    Table(24, 'Qualitative', why='stands with Table 23'),
    Table(
        'I',
        'How far raters agree (App. I)',
        (share('tldr_table1', 'Kendall’s W, in per cent', 65, 'concordance'),),
        told='The paper: 0.6 to 0.7 in its sessions. By chance it is one third for three raters.',
    ),
    Table(
        'J',
        'At equal length, by the paper’s plain ratio, and how long responses are (App. J)',
        (
            *both('tldr_table1', 'summarization', *MAIN, even=True),
            *both('helpful_rlaif', 'helpful', *HELPFUL, even=True),
            *harmless('plain_ratio'),
            length('RLAIF', 'SFT'), length('RLHF', 'SFT'), length('RLAIF', 'RLHF'),
        ),
        told='Harmless rates are read at SFT’s mean length. A ~ marks what is read where hardly a response is.',
    ),
    Table(
        'K',
        'Votes and labels together (App. K)',
        raw_and_even('tldr_combined', ('RLHF + RLAIF', 'SFT'), ('RLHF + RLAIF', 'RLHF')),
    ),
    Table(
        'L',
        'What a label costs (App. L)',
        (
            Statement('tokens of a label, both orders, its rationales among them', 'shown', 1782,
                      'labeling_techniques', ('tokens', 'summarization detailed_cot_0shot')),
            Statement('US cents a label, at what the paper paid a token; people: 67', 'shown', 5.7,
                      'labeling_techniques', ('cents', 'summarization detailed_cot_0shot')),
        ),
        told='Posts of the simulated world are short: its tokens say nothing of real ones.',
    ),
    Table(
        'N',
        'The simplest prompt against the best (App. N)',
        raw_and_even('tldr_base_prompt', ('base-prompt RLAIF', 'SFT'), ('base-prompt RLAIF', 'RLAIF')),
        told='The paper’s reward model of the simplest prompt is the better one (Table 7), its policy is not.',
    ),
    Table(
        'v1',
        'Reward models by the number of labels (first version of the paper)',
        examples(),
        told='The paper: labels are near their best at a twentieth of the data, and flat from there; votes go on helping.',
    ),
    Table('G', 'What KL to SFT should cost (App. G: β = 0.05)', beta(), told='The paper has no figures for other β.'),
    Table(
        'soft',
        'Soft labels or hard ones',
        (
            difference('rm_soft_vs_hard', 'soft labels, beside hard ones', None,
                       ('reward models', 0, 'all', 'accuracy'), ('reward models', 1, 'all', 'accuracy')),
        ),
        told='The paper uses soft labels, and does not try hard ones.',
    ),
)  # fmt: skip
