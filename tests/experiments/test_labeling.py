"""Laws of the studies of the labeler: each is a table over one store."""

import json
import random

import pytest

from experiments import labeling
from experiments.scales import scale
from launch import run as launcher
from rlaif_jax.config import Mistake
from rlaif_jax.data import loader
from rlaif_jax.labeling import preference
from rlaif_jax.labeling.prompts import Technique
from rlaif_jax.labeling.store import Store


def run(*arguments):
    return launcher.main(list(map(str, arguments)))


def test_a_study_shares_its_labels_with_the_next(tmp_path, labeler, calls):
    few = [f'--stages={tmp_path / "stages"}', 'pairs=12', 'label.batch=8', 'label.least_mass=0.0']
    few += [f'labelers=["{labeler}"]', 'label.max_rationale=4', 'mesh.data=1']
    assert run('--experiment=labeling_swap', f'--workdir={tmp_path / "swap"}', *few) == 0
    assert len(calls) == 24  # two techniques
    result = json.loads((tmp_path / 'swap' / 'result.json').read_text(encoding='utf-8'))
    assert result['simulated'] and set(result['cells']) == {'base_0shot', 'detailed_cot_0shot'}
    assert (tmp_path / 'swap' / 'alignment.png').read_bytes()[:4] == b'\x89PNG'
    assert (tmp_path / 'swap' / 'alignment.csv').read_text(encoding='utf-8').count('\n') == 3
    assert run('--experiment=labeling_sizes', f'--workdir={tmp_path / "sizes"}', *few) == 0
    assert len(calls) == 24  # its cell was made by the other study


def test_a_study_counts_its_own_labels_beside_another_process(tmp_path, labeler, monkeypatch):
    """The other one adds a hundred to the same file while each cell is made."""
    label_all, number = preference.label_all, iter(range(10**6))

    def beside(name, cfg, pairs, store, **more):
        Store(store.path).append({f'other {next(number)}': {'status': 'ok'} for _ in range(100)})
        return label_all(name, cfg, pairs, store, **more)

    monkeypatch.setattr(preference, 'label_all', beside)
    few = [f'--stages={tmp_path / "stages"}', 'pairs=12', 'label.batch=8', 'label.least_mass=0.0']
    few += [f'labelers=["{labeler}"]', 'techniques=["base_0shot"]', 'mesh.data=1']
    for name, hits in (('one', 0), ('again', 100)):
        assert run('--experiment=labeling_swap', f'--workdir={tmp_path / name}', *few) == 0
        (cell,) = json.loads((tmp_path / name / 'result.json').read_text(encoding='utf-8'))['cells'].values()
        assert float(cell['cached %']) == hits


def test_a_misspelt_technique_gets_the_nearest_right_one():
    for name in labeling.TECHNIQUES:
        for i in range(1, len(name) - len('0shot')):  # a letter twice
            with pytest.raises(Mistake, match=rf' {name}\?'):
                Technique.parse(name[:i] + name[i - 1 :])


def test_every_study_has_the_cells_of_its_table():
    cells = {name: getattr(labeling, name)(scale('micro')).cells() for name in labeling.__all__}
    assert {name: len(found) for name, found in cells.items()} == {
        'tldr_label': 1, 'labeling_techniques': 33, 'labeling_sizes': 3, 'labeling_self_consistency': 9,
        'labeling_swap': 6,
    }  # fmt: skip
    assert all(len({name for name, _, _ in found}) == len(found) for found in cells.values())


def test_confident_pairs_are_those_with_sure_raters():
    pairs = loader.pairs('micro_harmless', 'harmless', 'test', 40, confident=True)
    everything = loader.pairs('micro_harmless', 'harmless', 'test', 200)
    assert (
        len(pairs) == 40
        and [p for p in everything if p in pairs] == pairs[: len([p for p in pairs if p in everything])]
    )
    assert random.Random(0).choice(pairs).preference in (0.0, 1.0)
