"""Laws of model cards: the hub learns from an export what it was made of, as far as known, and no card stops one."""

import json

import huggingface_hub
import pytest

from rlaif_jax.models import cards, hf
from rlaif_jax.models.transformer import Config

SIZES = Config(vocab=1152, layers=1, width=8, heads=2, kv_heads=1, head_dim=4, ffn=12)
GEMMA = 'license: gemma\nlicense_link: https://ai.google.dev/gemma/terms\nlanguage: [en]'


@pytest.fixture
def made(random_params, micro_tokenizer, tmp_path):
    """`made(name)`: what the hub reads off the card of a model that was made of the one of that name."""

    def make(name):
        out = tmp_path / 'made' / str(len(list(tmp_path.glob('made/*'))))
        hf.save(hf.LM(SIZES, random_params(SIZES), micro_tokenizer, str(name)), out, about='All of it.')
        card = huggingface_hub.ModelCard.load(out / 'README.md')
        assert 'All of it.' in card.text and card.data.tags == ['rlaif']
        return out, {field: value for field in cards.HANDED_ON if (value := card.data.get(field))}

    return make


def folder(path, card='', **config):
    path.mkdir()
    (path / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    (path / 'README.md').write_text(card, encoding='utf-8')
    return path


def test_of_a_model_of_the_hub_it_is_the_base(made, monkeypatch, tmp_path):
    found = folder(tmp_path / 'cache', f'---\n{GEMMA}\nbase_model: google/gemma-2-2b\n---\n# Gemma')
    monkeypatch.setattr(cards, 'resolve', lambda name: found)
    licence = {'license': 'gemma', 'license_link': 'https://ai.google.dev/gemma/terms'}
    assert made('google/gemma-2-2b-it')[1] == licence | {'base_model': 'google/gemma-2-2b-it'}


def test_of_a_folder_its_card_is_handed_on(made, tmp_path):
    """From export to export, too."""
    start = folder(tmp_path / 'start', f'---\n{GEMMA}\nbase_model: [a/b, c/d]\n---\n')
    once, first = made(start)
    assert first['base_model'] == ['a/b', 'c/d'] and first['license'] == 'gemma'
    assert made(once)[1] == first


@pytest.mark.parametrize(
    'card', ['', '# no fields', '---\n: [\n---\n', '---\n- a list\n---\n', '---\nlicense: 3\n---\n']
)
def test_a_card_that_says_nothing_costs_nothing(made, tmp_path, card):
    assert made(folder(tmp_path / 'start', card))[1] == {}
    (tmp_path / 'start/README.md').write_bytes(b'\xff\xfe')
    assert made(tmp_path / 'start')[1] == {}


def test_a_config_may_say_a_licence(made, tmp_path):
    assert made(folder(tmp_path / 'start', license='mit', base_model=None))[1] == {'license': 'mit'}


def test_a_name_of_ones_own_and_a_packaged_model_are_no_base(made):
    assert made('mine')[1] == made('micro_xs')[1] == {}
