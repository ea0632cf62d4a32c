"""Laws of models of images and text: their text part is a language model like any other, whatever its tensors are called;
what is of images is left aside, and nothing else.
"""

import json

import families as small
import numpy as np
import pytest
import safetensors.numpy
from test_families import TOKEN_BT, VALID_BT, both, read, real, same, their_logits, theirs  # noqa: F401

from rlaif_jax.config import Mistake
from rlaif_jax.models import families, hf
from rlaif_jax.models.hf import LM

CASES = {'gemma3': 'gemma3', 'mistral3': 'mistral', 'qwen3_vl': 'qwen3'}  # whose text part is of which case
IMAGES = {'vision_config': {'hidden_size': 8}, 'image_token_id': 5, 'eos_token_id': [1, 2]}
NAMES = {
    'as of old': (lambda name: f'language_model.{name}', 'vision_tower.embeddings.weight'),
    'today': (
        lambda name: name.replace('model.', 'model.language_model.', 1),
        'model.visual.patch_embed.proj.weight',
    ),
    'of its base': (
        lambda name: name.replace('model.', 'language_model.', 1),
        'multi_modal_projector.mm_input_projection_weight',
    ),
}


def wrapped(folder, kind, rename, *more):
    """The checkpoint of a case as the text part of a larger one."""
    known = small.golden(CASES[kind])
    small.write(folder, known['config'], known['shapes'])
    text = known['config'] | {'model_type': families.PARTS[kind].kind}
    text['rope_parameters'] = text['rope_parameters'] | ({'mrope_section': [2, 1, 1]} if kind == 'qwen3_vl' else {})
    raw = {'model_type': kind, 'text_config': text, **IMAGES}
    raw |= {'tie_word_embeddings': text['tie_word_embeddings']}
    (folder / 'config.json').write_text(json.dumps(raw), encoding='utf-8')
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    tensors = {rename(name): x for name, x in tensors.items()} | dict.fromkeys(more, np.ones((2, 2), np.float16))
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
    return folder


@pytest.mark.parametrize('names', NAMES)
@pytest.mark.parametrize('kind', CASES)
def test_a_text_part_is_a_model_of_its_family(tmp_path, micro_tokenizer, capsys, kind, names):
    known, (rename, image) = small.golden(CASES[kind]), NAMES[names]
    expected = read(small.write(tmp_path / 'text', known['config'], known['shapes']))
    folder = wrapped(tmp_path / 'whole', kind, rename, image)
    cfg, params = read(folder)
    assert cfg == expected[0]
    same(params, expected[1])
    read(folder)
    told = [line for line in capsys.readouterr().out.split('\n') if str(folder) in line]
    assert len(told) == 1 and ' 1 tensor' in told[0] and families.of(cfg).classes[0] in told[0]
    hf.save(LM(cfg, params, micro_tokenizer, str(folder)), tmp_path / 'out')
    assert json.loads((tmp_path / 'out/config.json').read_text(encoding='utf-8'))['model_type'] == cfg.family
    same(read(tmp_path / 'out')[1], params)


def test_what_is_neither_text_nor_image_is_named(tmp_path):
    folder = wrapped(tmp_path / 'odd', 'gemma3', NAMES['today'][0], 'model.audio_tower.weight')
    with pytest.raises(Mistake, match=r'model\.audio_tower\.weight'):
        read(folder)


@pytest.mark.parametrize(
    'fields, tells',
    [
        ({'text_config': None}, 'text_config = None .*table'),
        ({'text_config': {'model_type': 'llama'}}, r"text_config\.model_type = 'llama' .*gemma3_text"),
        ({'text_config': {'hidden_size': 8, 'alpha': 2}}, "text_config: field 'num_hidden_layers'"),
        ({'beta': 2}, "config.json: .*'beta'.* RLAIF_IGNORE_FIELDS=beta"),
        ({'quantization_config': {'bits': 4}}, r'quantization_config .* 4 bits'),
    ],
)
def test_a_config_that_is_not_understood_is_named(fields, tells):
    raw = {'model_type': 'gemma3', 'text_config': small.golden('gemma3')['config'], **IMAGES}
    with pytest.raises(Mistake, match=tells):
        families.read(raw | fields, 'config.json')


def test_gemma_3_says_few_of_its_sizes():
    """The text_config of its 4B, as it was published."""
    text = {
        'hidden_size': 2560, 'intermediate_size': 10240, 'model_type': 'gemma3_text', 'num_hidden_layers': 34,
        'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'}, 'sliding_window': 1024,
    }  # fmt: skip
    cfg = families.read({'model_type': 'gemma3', 'text_config': text, **IMAGES}, 'config.json')
    assert (cfg.vocab, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.tied) == (262_208, 8, 4, 256, True)
    assert cfg.windows == (1024,) * 5 + (0,) and {rope.factor for rope in cfg.ropes} == {1.0, 8.0}
    assert cfg.max_length == 131_072


def made(kind):
    """A small model of images and text as transformers makes it."""
    import transformers as t

    text = small.golden(CASES[kind])['config']
    seen = {'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2}
    if kind == 'gemma3':
        cfg = t.Gemma3Config(text, seen | {'image_size': 8, 'patch_size': 4}, mm_tokens_per_image=4)
        return t.Gemma3ForConditionalGeneration(cfg)
    if kind == 'mistral3':
        seen |= {'model_type': 'pixtral', 'head_dim': 4, 'image_size': 8, 'patch_size': 4}
        return t.Mistral3ForConditionalGeneration(t.Mistral3Config(vision_config=seen, text_config=text))
    seen = {
        'depth': 1,
        'hidden_size': 8,
        'intermediate_size': 8,
        'num_heads': 2,
        'out_hidden_size': text['hidden_size'],
    }
    seen |= {'deepstack_visual_indexes': [0], 'num_position_embeddings': 4}
    text = text | {'rope_parameters': text['rope_parameters'] | {'mrope_section': [2, 1, 1]}}
    cfg = t.Qwen3VLConfig(text | {'model_type': 'qwen3_vl_text'}, seen, tie_word_embeddings=True)
    return t.Qwen3VLForConditionalGeneration(cfg)


@pytest.mark.filterwarnings('ignore')  # of other people's code
@pytest.mark.parametrize('kind', CASES)
def test_transformers_says_the_same_of_text(theirs, micro_tokenizer, tmp_path, kind):  # noqa: F811
    """Of what it writes itself, of images and text; and of our export, a model of text alone."""
    import torch

    torch.manual_seed(0)
    model = made(kind).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            x.copy_(torch.tensor(small.weight(name, list(x.shape))))
    expected = real(their_logits(model))
    model.save_pretrained(tmp_path / 'theirs')
    cfg, params = read(tmp_path / 'theirs')
    whole, cached, _ = both(cfg, params, TOKEN_BT, VALID_BT)
    worst = max(np.abs(real(whole) - expected).max(), np.abs(real(cached, left=True) - expected).max())
    print(f'{kind}: {worst:.1e} of logits up to {np.abs(expected).max():.1f}')
    assert worst <= 2e-4
    hf.save(LM(cfg, params, micro_tokenizer, kind), tmp_path / 'ours')
    np.testing.assert_allclose(real(their_logits(theirs(tmp_path / 'ours'))), expected, rtol=0, atol=1e-5)
