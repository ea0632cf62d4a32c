"""Laws of the families: our numbers are those of transformers, whole or token by token; files go out as they came in; a
spoilt checkpoint is named. Without torch the numbers that transformers once gave are in golden/families.
"""

import dataclasses
import json
import math
import os
import re
import shutil
from functools import partial

import families as small
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rlaif_jax import axes
from rlaif_jax.config import Mistake
from rlaif_jax.models import families, heads, hf, stored, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.models.transformer import Rope

CASES = list(small.CASES)
CHUNK = 4  # tokens that go through the cache at a time
TOKEN_BT, VALID_BT = small.tokens()


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """`checkpoint(case)`: a folder as transformers writes it."""
    made = {}

    def make(case):
        if case not in made:
            known = small.golden(case)
            made[case] = small.write(tmp_path_factory.mktemp(case) / 'theirs', known['config'], known['shapes'])
        return made[case]

    return make


@pytest.fixture(scope='module')
def ours(checkpoint):
    """`ours(case)`: cfg, params, and what `both` returns."""
    made = {}

    def make(case):
        if case not in made:
            cfg = hf.read_config(checkpoint(case))
            params = stored.read_params(checkpoint(case), cfg, axes.make_mesh())
            made[case] = cfg, params, *map(np.asarray, both(cfg, params, TOKEN_BT, VALID_BT))
        return made[case]

    return make


@partial(jax.jit, static_argnums=0)
def both(cfg, params, token_BT, valid_BT):
    """Logits of rows padded on the right in one forward; of the same rows padded on the left, with a cache; and the hidden
    states of the first.
    """
    hidden_BTD, _ = transformer.forward(cfg, params, token_BT, *transformer.causal(valid_BT))
    rolled = lambda x_BT: jnp.stack([x_BT[0], jnp.roll(x_BT[1], small.LENGTH - small.SHORT)])  # noqa: E731
    token_BT, valid_BT = rolled(token_BT), rolled(valid_BT)

    position_BT, sees = transformer.causal(valid_BT)

    def step(cache, chosen):
        token_BT, position_BT, slot_BT = chosen
        hidden_BTD, cache = transformer.forward(
            cfg, params, token_BT, position_BT, sees._replace(slot_BT=slot_BT), cache
        )
        return cache, hidden_BTD

    def chunks(x_BT):
        return jnp.moveaxis(x_BT.reshape(2, -1, CHUNK, *x_BT.shape[2:]), 1, 0)

    cache = transformer.make_cache(cfg, 2, small.LENGTH)
    slot_BT = jnp.broadcast_to(jnp.arange(small.LENGTH), token_BT.shape)
    _, chunk_XBTD = jax.lax.scan(step, cache, tuple(map(chunks, (token_BT, position_BT, slot_BT))))
    cached_BTD = jnp.moveaxis(chunk_XBTD, 0, 1).reshape(hidden_BTD.shape)
    return heads.logits(cfg, params, hidden_BTD), heads.logits(cfg, params, cached_BTD), hidden_BTD


def real(logit_BTV, left=False):
    """Of the real tokens, (tokens, V)."""
    valid_BT = VALID_BT[:, ::-1] if left else VALID_BT
    return np.asarray(logit_BTV)[valid_BT]


# golden numbers


@pytest.mark.parametrize('case', CASES)
def test_the_numbers_are_those_that_transformers_once_gave(ours, case):
    _, _, logit_BTV, cached_BTV, _ = ours(case)
    for b, found in enumerate(small.golden(case)['logits']):
        length = (small.LENGTH, small.SHORT)[b]
        np.testing.assert_allclose(logit_BTV[b, 2:length:5, ::8], found, rtol=0, atol=2e-4)
    np.testing.assert_allclose(real(cached_BTV, left=True), real(logit_BTV), rtol=0, atol=2e-4)


@pytest.mark.skipif('RLAIF_REGENERATE_GOLDEN' not in os.environ, reason='golden numbers are only made when asked for')
@pytest.mark.filterwarnings('ignore')  # of other people's code
@pytest.mark.parametrize('case', CASES)
def test_make_the_golden_numbers(theirs, tmp_path, case):
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, fields = small.CASES[case]
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).save_pretrained(tmp_path / 'random')
    config = json.loads((tmp_path / 'random' / 'config.json').read_text(encoding='utf-8'))
    del config['transformers_version']
    stored = safetensors.numpy.load_file(tmp_path / 'random' / 'model.safetensors')
    shapes = {re.sub(r'(layers|experts)\.\d+\.', r'\1.{}.', name): list(x.shape) for name, x in stored.items()}
    logit_BTV = their_logits(theirs(small.write(tmp_path / 'theirs', config, shapes)))
    some = [logit_BTV[b, 2:length:5, ::8].round(5).tolist() for b, length in enumerate((small.LENGTH, small.SHORT))]
    text = json.dumps({'config': config, 'shapes': shapes, 'logits': some})
    (small.GOLDEN / f'{case}.json').write_text(text + '\n', encoding='utf-8')


# there and back


def tensors(folder):
    return {k: v for path in sorted(folder.glob('*.safetensors')) for k, v in safetensors.numpy.load_file(path).items()}


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


def read(folder, **more):
    cfg = hf.read_config(folder)
    return cfg, stored.read_params(folder, cfg, axes.make_mesh(), **more)


@pytest.mark.parametrize('case', CASES)
def test_files_go_out_as_they_came_in(checkpoint, micro_tokenizer, tmp_path, case):
    cfg, params = read(checkpoint(case))
    shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
    assert {name: x.shape for name, x in params.items()} == {name: x.shape for name, x in shapes.items()}
    hf.save(LM(cfg, params, micro_tokenizer, case), tmp_path / 'out', shard_bytes=20_000)
    assert len(list(tmp_path.glob('out/*.safetensors'))) > 1
    same(tensors(tmp_path / 'out'), tensors(checkpoint(case)))
    again, back = read(tmp_path / 'out')
    assert again == cfg
    same(back, params)


@pytest.mark.parametrize('case', CASES)
def test_matrices_are_turned_a_few_rows_at_a_time(checkpoint, monkeypatch, case):
    _, whole = read(checkpoint(case))
    monkeypatch.setattr(stored, 'ROWS', 5)  # which divides nothing
    same(read(checkpoint(case))[1], whole)


@pytest.mark.parametrize('case', CASES)
def test_what_nobody_trains_is_bfloat16_and_computes_the_same(checkpoint, micro_tokenizer, tmp_path, case):
    cfg, params = read(checkpoint(case))
    hf.save(LM(cfg, params, micro_tokenizer, case), tmp_path / 'half', dtype='bfloat16')
    rough = dataclasses.replace(cfg, dtype='bfloat16')
    found = {
        frozen: stored.read_params(tmp_path / 'half', rough, axes.make_mesh(), frozen=frozen)
        for frozen in (False, True)
    }
    kept = {name for name, x in found[True].items() if x.dtype == jnp.bfloat16}
    assert kept == transformer.PRODUCTS & set(params) and {x.dtype for x in found[False].values()} == {
        jnp.dtype('float32')
    }
    same(found[True], found[False])
    # Of a file in float32, too: products round to bfloat16 what they are given.
    rounded = stored.read_params(checkpoint(case), rough, axes.make_mesh(), frozen=True)
    assert {name for name, x in rounded.items() if x.dtype == jnp.bfloat16} == kept
    if case in ('gemma2', 'pythia', 'qwen3'):  # norms with an offset, biases, norms of heads
        same(*(dict(enumerate(both(rough, found[frozen], TOKEN_BT, VALID_BT))) for frozen in (True, False)))
        same(*(dict(enumerate(both(rough, some, TOKEN_BT, VALID_BT))) for some in (rounded, params)))
    # Products in float32: nothing to round.
    more = stored.read_params(tmp_path / 'half', cfg, axes.make_mesh(), frozen=True)
    assert {x.dtype for x in more.values()} == {jnp.dtype('float32')}


@pytest.mark.parametrize('case', ['pythia', 'phi3', 'gemma3'])
def test_each_device_gets_its_slice(checkpoint, micro_tokenizer, tmp_path, capsys, case):
    """Of fused tensors too, and they are fused again."""
    mesh = axes.make_mesh({'fsdp': 2, 'tensor': 2})
    cfg, params = read(checkpoint(case))
    placed = stored.read_params(checkpoint(case), cfg, mesh)
    same(placed, params)
    # 61 words are odd: they stay whole, and that is said, of all that stays whole in one line.
    told = capsys.readouterr().out
    assert told.count('V = 61') == told.count(str(checkpoint(case))) == 1 and 'embed_VD' in told
    hf.save(LM(cfg, placed, micro_tokenizer, case), tmp_path / 'out', shard_bytes=2000)
    same(tensors(tmp_path / 'out'), tensors(checkpoint(case)))


# with transformers itself


@pytest.fixture(scope='module')
def theirs():
    """`theirs(folder)`: the model that transformers reads from a folder, all of it and nothing else."""
    torch = pytest.importorskip('torch', reason='torch is not installed: nothing to compare with')
    torch.set_num_threads(1)
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def load(folder, kind=transformers.AutoModelForCausalLM, dtype='float32'):
        how = {'output_loading_info': True, 'attn_implementation': 'eager', 'dtype': dtype}
        model, loading = kind.from_pretrained(folder, **how)
        assert not any(loading[what] for what in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), loading
        return model.eval()

    return load


def their_logits(model, token_BT=TOKEN_BT, valid_BT=VALID_BT):
    import torch

    with torch.no_grad():
        out = model(torch.tensor(token_BT), attention_mask=torch.tensor(valid_BT.astype(int)))
    return out.logits.float().numpy()


@pytest.mark.filterwarnings('ignore')  # of other people's code
@pytest.mark.parametrize('case', CASES)
def test_transformers_says_the_same_before_and_after(checkpoint, ours, theirs, micro_tokenizer, tmp_path, case):
    """What it computes is what we do, whole or through a cache; it reads our files as its own, and writes them back."""
    cfg, params, logit_BTV, cached_BTV, _ = ours(case)
    expected = real(their_logits(theirs(checkpoint(case))))
    worst = max(np.abs(real(logit_BTV) - expected).max(), np.abs(real(cached_BTV, left=True) - expected).max())
    print(f'{case}: {worst:.1e} of logits up to {np.abs(expected).max():.1f}')
    assert worst <= 2e-4
    hf.save(LM(cfg, params, micro_tokenizer, case), tmp_path / 'ours')
    model = theirs(tmp_path / 'ours')
    assert model.config.model_type == small.CASES[case][0]
    np.testing.assert_allclose(real(their_logits(model)), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / 'again')
    again, back = read(tmp_path / 'again')
    assert again == cfg
    same(back, params)


@pytest.mark.filterwarnings('ignore')  # of other people's code
@pytest.mark.parametrize('case', [case for case in CASES if case != 'olmoe'])  # transformers has none of its family
def test_a_reward_model_goes_out_in_the_words_of_its_family(ours, theirs, micro_tokenizer, tmp_path, case):
    from transformers import AutoModelForSequenceClassification

    cfg, params, _, _, hidden_BTD = ours(case)
    cfg, score_D = dataclasses.replace(cfg, tied=True), np.linspace(-1, 1, cfg.width, dtype=np.float32)
    trunk = {name: x for name, x in params.items() if name != 'unembed_DV'}
    hf.save(LM(cfg, trunk | {'score_D': score_D}, micro_tokenizer, case), tmp_path / 'score')
    same(read(tmp_path / 'score', score=True)[1], trunk | {'score_D': score_D})
    model = theirs(tmp_path / 'score', AutoModelForSequenceClassification)
    found = their_logits(model, TOKEN_BT[:1], VALID_BT[:1])
    np.testing.assert_allclose(found[0], hidden_BTD[:1, -1] @ score_D, rtol=0, atol=5e-4)


@pytest.mark.filterwarnings('ignore')  # of other people's code
@pytest.mark.parametrize('case', ['qwen2', 'gemma2'])
def test_bfloat16_is_as_near_as_theirs(theirs, tmp_path, case):
    """Over a few models, log-probabilities differ from those in float32 by no more than those of transformers do."""
    known, off = small.golden(case), []
    logp = lambda x_BTV: real(jax.nn.log_softmax(np.asarray(x_BTV, np.float32)))  # noqa: E731
    for seed in 'abc':
        folder = small.write(tmp_path / seed, known['config'], known['shapes'], seed)
        cfg, params = read(folder)
        exact, rough = (
            logp(both(dataclasses.replace(cfg, dtype=dtype), params, TOKEN_BT, VALID_BT)[0])
            for dtype in ('float32', 'bfloat16')
        )
        other = logp(their_logits(theirs(folder, dtype='bfloat16')))
        off.append([np.abs(rough - exact).mean(), np.abs(other - exact).mean()])
    mine, other = np.mean(off, axis=0)
    print(f'{case}: {mine:.4f} nats, theirs {other:.4f}')
    assert 0 < mine <= 1.1 * other


# what cannot be


def spoil(edit):
    def spoiled(folder):
        stored = tensors(folder)
        name = sorted(stored)[len(stored) // 2]
        name = edit(stored, name) or name
        safetensors.numpy.save_file(stored, folder / 'model.safetensors')
        return name

    return spoiled


def truncated(folder):
    data = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(data[: len(data) // 2])
    return 'model.safetensors'


def other_type(folder):
    raw = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    (folder / 'config.json').write_text(json.dumps(raw | {'model_type': raw['model_type'] + '_mlp'}), encoding='utf-8')
    return rf"'{raw['model_type']}_mlp'.* nearest: [^;]*\b{raw['model_type']}\b"


def spoilt(x):
    x = x.copy()
    x.flat[-1] = np.nan
    return x


BAD = {
    'missing tensor': spoil(lambda stored, name: stored.pop(name) is None),
    'extra tensor': spoil(
        lambda stored, name: stored.update({f'{name}_scale': np.ones(3, np.float32)}) or f'{name}_scale'
    ),
    'wrong shape': spoil(lambda stored, name: stored.update({name: stored[name][1:].copy()})),
    'integers': spoil(lambda stored, name: stored.update({name: stored[name].astype(np.int8)})),
    'NaN': spoil(lambda stored, name: stored.update({name: spoilt(stored[name])})),
    'half a file': truncated,
    'other family': other_type,
}


@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('case', CASES)
def test_a_spoilt_checkpoint_is_named(checkpoint, tmp_path, case, bad):
    folder = shutil.copytree(checkpoint(case), tmp_path / 'spoilt')
    named = BAD[bad](folder)
    with pytest.raises(Mistake, match=named) as error:
        read(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    'case, fields, says',
    [
        ('llama', {'rope_parameters': {'rope_type': 'axial', 'factor': 2.0}}, "rope_type = 'axial' .* llama3"),
        ('llama', {'rope_parameters': {'partial_rotary_factor': 0.5}}, r'partial_rotary_factor = 0\.5 .* 1$'),
        ('phi3', {'rope_parameters': None, 'rope_scaling': {'type': 'su', 'short_factor': [1.0]}}, "'long_factor'"),
        ('phi3', {'rope_parameters': None, 'rope_scaling': {'type': 'su', 'short_factor': [1.0], 'long_factor': [2.0]}},
         'short_factor|1 factors'),
        ('phi3', {'attention_bias': True}, 'attention_bias = True .* RLAIF_IGNORE_FIELDS=attention_bias'),
        ('mistral', {'layer_types': ['full_attention'] * 3}, "'layer_types'.* RLAIF_IGNORE_FIELDS=layer_types"),
        ('qwen2', {'layer_types': ['chunked_attention'] * 3}, 'layer_types = .*chunked.* full_attention or'),
        ('qwen2', {'use_mrope': True}, 'use_mrope = True .* RLAIF_IGNORE_FIELDS=use_mrope'),
        ('qwen3', {'head_dim': '8'}, "head_dim = '8' .* whole number, 1 to "),
        ('gemma', {'hidden_activation': 'relu'}, "hidden_activation = 'relu' .* gelu_pytorch_tanh$"),
        ('gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_attention = True .* RLAIF_IGNORE_FIELDS='),
        ('gemma3', {'rope_parameters': {'full_attention': {'rope_type': 'three'}}}, "rope_type = 'three' .* llama3"),
        ('pythia', {'hidden_act': 'relu'}, "hidden_act = 'relu' .* silu, swish, gelu,"),
        ('olmo2', {'clip_qkv': 8.0}, 'clip_qkv = 8.0 .* RLAIF_IGNORE_FIELDS=clip_qkv'),
        ('smollm3', {'quantization_config': {'bits': 4}}, r"quantization_config = \{'bits': 4\} .* 4 bits.*bfloat16"),
    ],
)  # fmt: skip
def test_what_we_do_not_compute_is_refused(case, fields, says):
    with pytest.raises(Mistake, match=rf'config\.json: .*{says}'):
        families.read(small.golden(case)['config'] | fields, 'config.json')


@pytest.mark.parametrize(
    'case, name, values',
    [
        ('llama', 'num_hidden_layers', (10**9, 0, -1, 3.0, '3', True)),  # as many as these are never listed
        ('llama', 'vocab_size', (1152.0, 10**30, None)),
        ('llama', 'rms_norm_eps', (-1e-6, math.inf, math.nan, '1e-5', True)),
        ('llama', 'attention_bias', ('false', 2)),
        ('pythia', 'use_parallel_residual', ('false',)),
        ('qwen2', 'use_sliding_window', ('no',)),
        ('mistral', 'rope_theta', ('10000', 10**400, -1.0, True, [1e4])),
        ('mistral', 'sliding_window', (-1, 4096.0, '4096')),
        ('gemma2', 'query_pre_attn_scalar', (0, -4, '256')),
        ('gemma2', 'attn_logit_softcapping', (0.0, '50')),
        ('gemma3', 'sliding_window_pattern', (2.5, -3)),
        ('qwen2', 'layer_types', (3, [[]] * 3, 'full_attention')),
        ('smollm3', 'no_rope_layers', ([1, 0], 4)),
        ('smollm3', 'no_rope_layer_interval', (0, '4')),
        ('llama', 'hidden_act', (['silu'], {}, None)),
    ],
)
def test_a_value_that_is_no_number_of_its_kind_is_named(case, name, values):
    for value in values:
        config = {key: x for key, x in small.golden(case)['config'].items() if not key.startswith('rope_')}
        with pytest.raises(Mistake, match=rf'config\.json: .*{name}'):
            families.read(config | {name: value}, 'config.json')


@pytest.mark.parametrize(
    'table, tells',
    [
        ({'rope_type': 'linear', 'factor': value}, f'factor = {value!r} ') for value in (0, -2.0, '2', True, [2], math.inf)
    ] + [(small.LLAMA3 | {name: value}, tells) for name, value, tells in (
        ('low_freq_factor', 0, 'low_freq_factor = 0 '), ('high_freq_factor', 1.0, '(1.0, 1.0, 32)'),
        ('low_freq_factor', 9, '(9.0, 4.0, 32)'),
        ('original_max_position_embeddings', 0, 'original_max_position_embeddings = 0 '),
    )] + [(small.YARN | {name: value}, tells) for name, value, tells in (
        ('beta_fast', 0.5, '0.5'), ('beta_slow', 0, 'beta_slow'), ('factor', -1.0, 'factor'),
        ('truncate', 'no', 'truncate'), ('attention_factor', '1', 'attention_factor'), ('gamma', 2, 'gamma'),
    )] + [({'rope_type': 'longrope', 'long_factor': [1.0] * 4, 'short_factor': value}, tells) for value, tells in (
        ([1.0] * 3, 'factors'), ([0.0] * 4, 'short_factor'), (['1'] * 4, 'short_factor'), (1.0, 'short_factor'),
        ([], 'short_factor'),
    )],
)  # fmt: skip
def test_rotary_positions_without_a_meaning_are_refused(table, tells):
    with pytest.raises(Mistake, match=rf'config\.json: .*{re.escape(tells)}'):
        families.read(small.golden('llama')['config'] | {'rope_parameters': None, 'rope_scaling': table}, 'config.json')


@pytest.mark.parametrize(
    'case, fields, says',
    [
        ('llama', {'attention_cap': 3.0}, 'attention_cap = 3.0'),
        ('llama', {'windows': (4, 0)}, r'windows = \(4, 0, 4\)'),
        ('mistral', {'windows': (4, 0)}, 'windows'),
        ('gemma2', {'windows': (4, 5)}, 'windows'),
        ('gemma', {'embed_scale': 1.0}, 'embed_scale = 1.0'),
        ('pythia', {'kv_heads': 1}, 'kv_heads = 1'),
        ('qwen2', {'out_bias': True}, 'out_bias = True'),
        ('smollm3', {'ropes': (Rope(1e4), Rope(1e6))}, 'ropes'),
    ],
)  # fmt: skip
def test_what_their_files_cannot_say_is_not_written(case, fields, says):
    cfg = families.read(small.golden(case)['config'], 'config.json')
    assert families.read(families.write(cfg), 'config.json') == cfg
    with pytest.raises(Mistake, match=f' {cfg.family} .*{says}'):
        families.write(dataclasses.replace(cfg, **fields))


SIZES = {
    'vocab_size': 64, 'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 12, 'num_attention_heads': 4,
    'max_position_embeddings': 8192, 'torch_dtype': 'bfloat16', 'transformers_version': '4.40.0', 'use_cache': True,
}  # fmt: skip


@pytest.mark.parametrize(
    'raw, expected',
    [
        ({'model_type': 'llama', 'rope_theta': 5e5, 'rope_scaling': small.LLAMA3},
         {'ropes': (Rope(5e5, 1.0, 8.0, (1.0, 4.0, 32)),), 'kv_heads': 4, 'head_dim': 8, 'tied': False}),
        ({'model_type': 'llama', 'rope_scaling': {'type': 'linear', 'factor': 2.0}, 'rope_interleaved': False},
         {'ropes': (Rope(factor=2.0),)}),
        ({'model_type': 'mistral', 'sliding_window': None, 'num_key_value_heads': 2}, {'windows': (0,), 'kv_heads': 2}),
        ({'model_type': 'mistral'}, {'windows': (4096,)}),
        ({'model_type': 'qwen2', 'use_sliding_window': False, 'sliding_window': 131072, 'max_window_layers': 6},
         {'windows': (0,), 'qkv_bias': True, 'out_bias': False}),
        ({'model_type': 'qwen2', 'use_sliding_window': True, 'sliding_window': 7, 'max_window_layers': 6},
         {'windows': (0,) * 6 + (7,) * 6}),
        ({'model_type': 'gemma', 'hidden_act': 'gelu', 'head_dim': 16}, {'activation': 'gelu_tanh', 'tied': True}),
        ({'model_type': 'gemma2', 'hidden_activation': 'gelu_pytorch_tanh', 'head_dim': 16, 'query_pre_attn_scalar': 16},
         {'windows': (4096, 0), 'attention_cap': 50.0, 'logit_cap': 30.0, 'attention_scale': None}),
        ({'model_type': 'gemma3_text', 'head_dim': 16, 'sliding_window': 512, 'sliding_window_pattern': 6,
          'rope_local_base_freq': 1e4, 'rope_theta': 1e6, 'rope_scaling': None, 'cache_implementation': 'hybrid'},
         {'windows': (512,) * 5 + (0,), 'ropes': (Rope(1e4),) * 5 + (Rope(1e6),), 'attention_scale': 0.0625}),
        ({'model_type': 'gpt_neox', 'rotary_pct': 0.5, 'rotary_emb_base': 1e4, 'layer_norm_eps': 1e-5},
         {'ropes': (Rope(1e4, 0.5),), 'parallel': True, 'activation': 'gelu', 'norm': 'layer'}),
        ({'model_type': 'olmo2', 'rope_theta': 5e5}, {'ropes': (Rope(5e5),), 'norm_at': 'after', 'qk_norm': 'all'}),
        ({'model_type': 'phi3', 'rope_scaling': None, 'sliding_window': 2047, 'original_max_position_embeddings': 4096,
          'embd_pdrop': 0.0}, {'windows': (2047,), 'norm_eps': 1e-5}),
        ({'model_type': 'smollm3', 'no_rope_layers': [1, 1, 1, 0] * 3, 'max_window_layers': 28, 'rope_theta': 5e6},
         {'ropes': (Rope(5e6),) * 3 + (Rope(5e6, factor=float('inf')),), 'tied': True}),
    ],
    ids=lambda x: x.get('model_type', ''),
)  # fmt: skip
def test_old_files_are_read(raw, expected):
    """As they lie on the hub, written before the words of today."""
    cfg = families.read(SIZES | raw, 'config.json')
    assert {name: getattr(cfg, name) for name in expected} == expected
    assert families.read(families.write(cfg), 'config.json') == cfg


NEOX = {
    'model_type': 'gpt_neox', 'hidden_size': 16, 'num_attention_heads': 2, 'num_hidden_layers': 1, 'intermediate_size': 8,
    'vocab_size': 9, 'max_position_embeddings': 32, 'rotary_pct': 0.5, 'rotary_emb_base': 10_000,
}  # fmt: skip


def test_a_neox_file_may_say_its_rotary_positions_twice():
    """As transformers 4.57 writes it; a contradiction is named, and no rotation at all is not one quarter."""
    twice = NEOX | {'partial_rotary_factor': 0.5, 'rope_theta': 10_000}
    assert families.read(twice, 'c') == families.read(NEOX, 'c')
    for wrong in ({'partial_rotary_factor': 0.25}, {'rope_theta': 5}, {'rotary_pct': 0.0}):
        with pytest.raises(Mistake, match=next(iter(wrong))):
            families.read(twice | wrong, 'c')
    with pytest.raises(Mistake, match='rotary_pct = 0.0'):
        families.read(NEOX | {'rotary_pct': 0.0}, 'c')


def test_positions_that_turn_otherwise_in_longer_texts_are_for_shorter_ones(capsys):
    raw = small.golden('longrope')['config']
    cfg = families.read(raw, 'a longrope')
    assert (cfg.max_length, raw['max_position_embeddings']) == (32, 64)
    assert 'a longrope: is read for texts of up to 32 tokens' in ' '.join(capsys.readouterr().out.split())
    written = families.write(cfg)
    assert (written['original_max_position_embeddings'], written['max_position_embeddings']) == (32, 64)
    for scale in (1.5, cfg.ropes[0].scale):  # which files say only where it is not the usual one
        other = dataclasses.replace(cfg, ropes=(dataclasses.replace(cfg.ropes[0], scale=scale),))
        assert ('attention_factor' in families.write(other)['rope_scaling']) == (scale == 1.5)
    assert families.read(small.golden('dynamic')['config'], 'a dynamic').max_length == 64


# one fact in several places

TABLES = ('rope_parameters', 'rope_scaling')
BASES = {'llama_biased': 'rope_theta', 'pythia': 'rotary_emb_base', 'phi3': 'rope_theta', 'smollm3': 'rope_theta'}


def scattered(rng, case):
    """A config.json that says the same rotary positions in places drawn at random, each at least once; and what it says."""
    said = {'rope_theta': 5e5} | small.LLAMA3
    if case in ('pythia', 'phi3'):
        said |= {'partial_rotary_factor': 0.5}
    raw = {name: x for name, x in small.golden(case)['config'].items() if name not in (*TABLES, 'rotary_pct')}
    tops = {
        'rope_theta': BASES[case],
        'partial_rotary_factor': 'rotary_pct' if case == 'pythia' else 'partial_rotary_factor',
    }
    tables = {name: {} for name in TABLES}
    for word, value in said.items():
        places = [name for name in (*TABLES, 'top') if rng.random() < 0.5 and (name != 'top' or word in tops)]
        for place in places or [TABLES[rng.integers(2)]]:
            if place == 'top':
                raw[tops[word]] = value
            else:
                tables[place][str(rng.choice(['type', word])) if word == 'rope_type' else word] = value
    return raw | {name: table or None for name, table in tables.items()}, said


@pytest.mark.parametrize('case', BASES)
def test_rotary_positions_may_be_said_in_pieces_and_twice_but_not_in_two_ways(case):
    rng = np.random.default_rng(0)
    for _ in range(60):
        raw, said = scattered(rng, case)
        cfg = families.read(raw, 'config.json')
        rope = Rope(5e5, said.get('partial_rotary_factor', 1.0), 8.0, (1.0, 4.0, 32))
        assert cfg.ropes[0] == rope, raw
        assert families.read(families.write(cfg), 'config.json') == cfg
        # Another value in the other table: both are shown, each with its place.
        word = str(rng.choice([word for word in said if word != 'rope_type']))
        holding = [name for name in TABLES if word in (raw[name] or {})]
        for name in TABLES if holding == [] else set(TABLES) - set(holding):
            if not holding and word not in ('rope_theta', 'partial_rotary_factor'):
                continue
            spoilt = raw | {name: (raw[name] or {}) | {word: said[word] * 2}}
            with pytest.raises(Mistake) as error:
                families.read(spoilt, 'config.json')
            assert {f'{name}.{word}', str(said[word]), str(said[word] * 2)} <= set(re.split('[ ,;]+', str(error.value)))


@pytest.mark.parametrize(
    'case, fields, tells',
    [
        ('llama', {'rope_theta': 1e4, 'rope_parameters': {'rope_theta': 5e5}}, r'theta = 500000\.0.* rope_theta = 10000'),
        ('llama', {'rope_scaling': {'type': 'default'}}, r"\.rope_type = 'linear'.* rope_scaling\.type = 'default'"),
        ('gemma3', {'rope_theta': 1e4}, r'full_attention\.rope_theta = 1000000\.0.* rope_theta = 10000\.0'),
        ('gemma3', {'rope_local_base_freq': 5.0}, r'_attention\.rope_theta = 10000\.0.* rope_local_base_freq = 5'),
        ('gemma3', {'rope_scaling': {'rope_type': 'linear', 'factor': 4.0}}, r'factor = 8\.0.* rope_scaling\.factor = 4'),
        ('phi3', {'partial_rotary_factor': 0.25}, r'\.partial_rotary_factor = 0\.75.* partial_rotary_factor = 0\.25'),
        ('llama', {'rope_scaling': 'linear'}, r"rope_scaling = 'linear' .*table"),
        ('llama', {'rope_parameters': {'rope_theta': float('nan')}}, 'rope_theta = nan'),
    ],
)  # fmt: skip
def test_a_contradiction_shows_both_values(case, fields, tells):
    raw = small.golden(case)['config']
    with pytest.raises(Mistake, match=rf'config\.json: .*{tells}'):
        families.read(raw | fields, 'config.json')


NOTED = {
    'unsloth_fixed': True, 'unsloth_version': '2025.3.1', 'unsloth_anything': [1], 'model_name': 'x/y', 'max_length': 4096,
    'temperature': 0.6, 'top_p': 0.9, 'do_sample': True, 'num_labels': 1, 'torchscript': False, 'pruned_heads': {},
    'use_bfloat16': False, 'tf_legacy_loss': False, 'finetuning_task': None, 'gradient_checkpointing': False,
    '_attn_implementation': 'sdpa', '_commit_hash': None, 'tie_encoder_decoder': False, 'add_cross_attention': False,
    'cross_attention_hidden_size': None, 'task_specific_params': None, 'max_sequence_length': 2048, 'num_beams': 1,
    'repetition_penalty': 1.0, 'suppress_tokens': None, 'prefix': None, 'neftune_noise_alpha': 5, 'bos_token': '<s>',
    'keys_to_ignore_at_inference': ['past_key_values'], 'quantization': None, 'quantization_config': {}, 'mean': 0.0,
    'std': 1.0, 'normalize_reward': False, 'value_head_prefix': 'score', 'output_router_logits': False, 'ignore_index': 0,
    'layer_norm_eps': 1e-5, 'rms_norm_eps': 1e-5, 'license': 'apache-2.0', 'use_flash_attn': True, 'torch_dtype': 'float16',
}  # fmt: skip


@pytest.mark.parametrize('case', CASES)
def test_what_tools_note_in_a_config_changes_nothing(case):
    raw = small.golden(case)['config']
    assert families.read(NOTED | raw, 'config.json') == families.read(raw, 'config.json')


CHANGES = {
    'mean': 0.5, 'std': 2.0, 'normalize_reward': True, 'pruned_heads': {'0': [1]}, 'add_cross_attention': True,
    'output_router_logits': True, 'cross_attention_hidden_size': 8, 'use_mrope': True, 'logit_scale': 0.5, 'num_experts': 8,
}  # fmt: skip


@pytest.mark.parametrize('name', CHANGES)
@pytest.mark.parametrize('case', ['llama', 'pythia', 'gemma3'])
def test_what_may_change_the_numbers_is_taken_on_the_users_own_account_only(case, name, monkeypatch, capsys):
    raw = small.golden(case)['config']
    with pytest.raises(Mistake, match=rf'config\.json: .*{name}.* RLAIF_IGNORE_FIELDS={name} '):
        families.read(raw | {name: CHANGES[name]}, 'config.json')
    monkeypatch.setenv('RLAIF_IGNORE_FIELDS', f'other, {name}')
    where = f'{case}/{name}/config.json'
    assert families.read(raw | {name: CHANGES[name]}, where) == families.read(raw, where)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith(f'{where}: {name} = {CHANGES[name]!r} ') and 'RLAIF_IGNORE_FIELDS' in said
    with pytest.raises(Mistake, match=f"{where}: .*'alpha'"):  # of one name, not of all
        families.read(raw | {name: CHANGES[name], 'alpha': 1}, where)


def test_a_word_in_a_table_can_be_ignored_too(monkeypatch):
    raw = small.golden('llama')['config']
    other = raw | {'rope_parameters': raw['rope_parameters'] | {'beta_fast': 32}}
    with pytest.raises(Mistake, match=r'RLAIF_IGNORE_FIELDS=rope_parameters\.beta_fast'):
        families.read(other, 'config.json')
    monkeypatch.setenv('RLAIF_IGNORE_FIELDS', 'rope_parameters.beta_fast')
    assert families.read(other, 'config.json') == families.read(raw, 'config.json')


@pytest.mark.parametrize('case', CASES)
def test_every_token_that_is_made_has_a_row(checkpoint, micro_tokenizer, tmp_path, case):
    """Of a tokenizer that has more tokens than the embedding has rows, too: what cannot be read is an error."""
    folder = shutil.copytree(checkpoint(case), tmp_path / 'with words')
    micro_tokenizer.hf.save_pretrained(folder)
    lm, rng, refused = hf.load(folder), np.random.default_rng(1), 0
    tokenizer = lm.tokenizer
    assert tokenizer.eos in tokenizer.ends and max(*tokenizer.ends, tokenizer.pad) < lm.config.vocab
    rare, common = 'so my boss is late', tokenizer.decode([[token] for token in range(4, lm.config.vocab)])
    for _ in range(20):
        text = ''.join(rng.choice([*common, rare] if rng.random() < 0.5 else common, 4))
        try:
            rows = [*tokenizer.prompts([text]), *tokenizer.responses([text], [text])]
        except Mistake as mistake:
            assert re.search(rf'token \d+, .* {lm.config.vocab} rows', str(mistake))
            refused += 1
        else:
            assert max(map(max, rows)) < lm.config.vocab
    assert refused
