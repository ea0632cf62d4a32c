"""Laws of the pictures: each is one, says what is simulated, shares no state with other figures, says what it lacks."""

import math
import sys
from itertools import combinations

import numpy as np
import pytest
from test_alignment import labels
from test_report import SILENT, TEXTS, comparison

from rlaif_jax.config import Mistake
from rlaif_jax.evaluation.alignment import report
from rlaif_jax.evaluation.figures import figure_labelers, figure_lengths, figure_matrix, figure_training


def metrics(n=30, key='objective/kl', **more):
    rows = [{'step': i, 'objective/scores': 0.1 * i, key: None if i == 3 else i, **more} for i in range(n)]
    rows[-1] |= {'eval/score': 0.5, 'eval/win_rate': 0.7, 'eval/kl': math.nan}
    return rows


REPORTS = [report(f'technique_{i} $x_$', **labels(seed=i)) for i in range(7)] + [report('bare', [np.nan], [1])]
PAPER = {'technique_1 $x_$': 78.0}
MATRIX = {pair: comparison(names=pair) for pair in combinations(TEXTS, 2)}
DRAW = {
    'labelers.png': lambda path, **more: figure_labelers(path, REPORTS, published=PAPER, **more),
    'one_labeler.svg': lambda path, **more: figure_labelers(path, REPORTS[-1:], **more),
    'matrix.png': lambda path, **more: figure_matrix(path, MATRIX, **more),
    'lengths.png': lambda path, **more: figure_lengths(path, {**TEXTS, 'none': [], 'empty': [''] * 3}, **more),
    'training.png': lambda path, **more: figure_training(path, {f'$run_{i}': metrics() for i in range(7)}, **more),
    'no_votes.svg': lambda path, **more: figure_matrix(path, {('RLAIF', 'SFT'): SILENT}, **more),
    'one_length.svg': lambda path, **more: figure_lengths(path, {'a': ['xx']}, **more),
    'one_step.svg': lambda path, **more: figure_training(path, {'run': metrics(1), 'not begun': []}, **more),
}


@pytest.mark.parametrize('name', DRAW)
def test_a_figure_is_a_picture_and_says_what_is_simulated(name, tmp_path):
    import matplotlib

    before, path = 'matplotlib.pyplot' in sys.modules, tmp_path / 'new' / name
    with matplotlib.rc_context({'svg.fonttype': 'none'}):
        DRAW[name](path, title='our title', simulated=True)
    assert ('matplotlib.pyplot' in sys.modules) == before  # no state shared with the user's own figures
    data = path.read_bytes()
    if path.suffix == '.png':
        assert data[:8] == b'\x89PNG\r\n\x1a\n' and data[-8:-4] == b'IEND' and 10_000 < len(data) < 500_000
    else:
        text = data.decode()
        assert '<svg' in text and 'SIMULATED · our title' in text and '>nan<' not in text
        assert ('no votes' in text) == (name == 'no_votes.svg')


@pytest.mark.parametrize(
    ('call', 'told'),
    [
        (lambda path: figure_labelers(path / 'a.png', []), 'no reports'),
        (
            lambda path: figure_labelers(path / 'a.png', REPORTS, published={'bare': 0.78}),
            r"published\['bare'\].*78\.0.* 0\.78",
        ),
        (lambda path: figure_labelers(path / 'a.pdf', REPORTS), r'a\.pdf.*\.png'),
        (lambda path: figure_matrix(path / 'a.png', {}), 'no comparisons'),
        (lambda path: figure_lengths(path / 'a.png', {'a': []}), 'no responses'),
        (lambda path: figure_lengths(path / 'a.pdf', TEXTS), r'a\.pdf.*\.png'),
        (lambda path: figure_training(path / 'a.png', {'sft run': [{'step': 0, 'loss': 1}]}), 'sft run'),
    ],
)
def test_bad_input_is_refused_by_name(call, told, tmp_path):
    with pytest.raises(Mistake, match=told):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_figure_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(Mistake, match='pip install matplotlib'):
        figure_lengths(tmp_path / 'a.png', TEXTS)
