"""Laws of checkpoints in and out: the numbers of a real model, there and back bit by bit, a clear word for a bad one."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding

import rlaif_jax
from rlaif_jax import axes
from rlaif_jax.config import Mistake, Passing
from rlaif_jax.generation import generate, sample
from rlaif_jax.models import hf, presets, stored
from rlaif_jax.models.hf import LM, load, save
from rlaif_jax.models.transformer import Config, Rope

ROOT = Path(__file__).resolve().parents[2]
CFG = Config(vocab=1152, layers=2, width=8, heads=4, kv_heads=2, head_dim=6, ffn=12, tied=False, norm_eps=1e-4)


@pytest.fixture(scope='module')
def lm(random_params, micro_tokenizer):
    return LM(CFG, random_params(CFG), micro_tokenizer, 'tiny')


@pytest.fixture(scope='module')
def saved(lm, tmp_path_factory):
    """A directory to read; a test that spoils it copies it first."""
    folder = tmp_path_factory.mktemp('checkpoint') / 'tiny'
    save(lm, folder)
    return folder


def tensors(folder):
    return {k: v for path in sorted(folder.glob('*.safetensors')) for k, v in safetensors.numpy.load_file(path).items()}


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]), err_msg=name)


# a real model


@pytest.fixture(scope='module')
def stories(shared):
    golden = json.loads((shared / 'stories260k' / 'golden.json').read_text(encoding='utf-8'))
    return load(shared / 'stories260k'), golden


def test_a_real_model_says_what_its_reference_says(stories):
    lm, golden = stories
    prompt = np.array([golden['prompt_ids']])
    logit_TV = np.asarray(rlaif_jax.logits(lm, prompt))[0]
    assert logit_TV.dtype == np.float32
    logp_TV = np.asarray(jax.nn.log_softmax(logit_TV))
    got = logp_TV[np.arange(len(prompt[0]) - 1), prompt[0, 1:]]
    np.testing.assert_allclose(got, golden['prompt_token_logprobs'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logit_TV[-1, :8], golden['last_logits_first8'], rtol=0, atol=1e-3)
    mask = np.arange(len(prompt[0])) < 10  # padding is not seen
    padded = rlaif_jax.logits(lm, np.where(mask, prompt, 0), mask[None])
    np.testing.assert_allclose(padded[0, :10], logit_TV[:10], rtol=0, atol=1e-5)


def test_a_real_model_continues_as_its_reference_does(stories):
    lm, golden = stories
    ids, tokenizer = golden['greedy_ids'], lm.tokenizer
    assert tokenizer.start == (ids[0],)
    token_BT, key = jnp.asarray([ids[:1]]), jax.random.key(0)
    allowed_V, stop_V = tokenizer.allowed(lm.config.vocab), tokenizer.stops(lm.config.vocab)
    new = len(ids) - 1
    out = sample(
        lm.config, lm.params, token_BT, token_BT > 0, key, allowed_V, stop_V, max_new_tokens=new, temperature=0.0
    )
    assert out.token_BT[0].tolist() == ids[1:]
    assert tokenizer.decode([ids])[0].strip() == golden['greedy_text'].strip()


def test_a_real_model_goes_out_as_it_came_in(stories, shared, tmp_path):
    lm, _ = stories
    save(lm, tmp_path / 'out')
    same(tensors(tmp_path / 'out'), tensors(shared / 'stories260k'))
    again = load(tmp_path / 'out')
    assert again.config == lm.config
    assert (again.tokenizer.start, again.tokenizer.ends) == (lm.tokenizer.start, lm.tokenizer.ends)
    assert again.tokenizer.encode(['Once upon a </s>']) == lm.tokenizer.encode(['Once upon a </s>'])
    same(again.params, lm.params)
    before, after = (
        json.loads((p / 'config.json').read_text(encoding='utf-8')) for p in (shared / 'stories260k', tmp_path / 'out')
    )
    assert {key: after[key] for key in before} == before


# there and back


@pytest.mark.parametrize('shard_bytes', [1, 4000, 2**30])
def test_a_checkpoint_in_several_files_is_the_same(lm, tmp_path, shard_bytes):
    save(lm, tmp_path / 'out', shard_bytes=shard_bytes)
    files = sorted(tmp_path.glob('out/*.safetensors'))
    index = tmp_path / 'out' / 'model.safetensors.index.json'
    assert (len(files) > 1) == index.exists() == (shard_bytes < 2**30)
    for path in files if index.exists() else []:
        stored = safetensors.numpy.load_file(path)
        assert len(stored) == 1 or sum(x.nbytes for x in stored.values()) <= shard_bytes
        where = json.loads(index.read_text(encoding='utf-8'))['weight_map']
        assert all(where[name] == path.name for name in stored)
    again = load(tmp_path / 'out')
    assert again.config == CFG
    same(again.params, lm.params)


def test_the_layout_is_the_one_of_a_linear_layer(lm, saved):
    """Their weights are (out, in), heads flattened with the head first."""
    theirs = tensors(saved)
    query_LDNH = np.asarray(lm.params['query_LDNH'])
    q = theirs['model.layers.1.self_attn.q_proj.weight']
    assert q.shape == (CFG.heads * CFG.head_dim, CFG.width)
    np.testing.assert_array_equal(q[3 * CFG.head_dim + 5], query_LDNH[1, :, 3, 5])
    out = theirs['model.layers.0.self_attn.o_proj.weight']
    np.testing.assert_array_equal(out[:, 2 * CFG.head_dim + 1], lm.params['out_LNHD'][0, 2, 1])
    np.testing.assert_array_equal(theirs['lm_head.weight'], np.asarray(lm.params['unembed_DV']).T)


@pytest.mark.parametrize('sizes', [{'data': 8}, {'fsdp': 2, 'tensor': 2}, {'data': 2, 'fsdp': 4}], ids=str)
def test_each_device_gets_its_slice(lm, saved, tmp_path, sizes):
    mesh = axes.make_mesh(sizes)
    again = load(saved, mesh=mesh)
    same(again.params, lm.params)
    for name, leaf in again.params.items():
        spec = axes.spec(axes.letters(name), leaf.shape, mesh)
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim), name
    query = again.params['query_LDNH'].addressable_shards[0].data
    assert query.shape == (2, 8 // mesh.shape['fsdp'], 4 // mesh.shape['tensor'], 6)
    save(again, tmp_path / 'out', shard_bytes=4000)
    same(tensors(tmp_path / 'out'), tensors(saved))


@pytest.mark.parametrize('sizes', [{}, {'data': 2, 'fsdp': 2, 'tensor': 2}], ids=str)
@pytest.mark.parametrize('piece', [1, 1000])
def test_the_host_holds_a_piece_at_a_time(lm, saved, monkeypatch, sizes, piece):
    """On the way to an accelerator; a piece is a row of the first axis at least."""
    held, pages, mesh = [], stored._pages, axes.make_mesh(sizes)
    monkeypatch.setattr(stored, '_piece', lambda device: piece)
    monkeypatch.setattr(stored, '_pages', lambda shape, *more: held.append(shape) or pages(shape, *more))
    again = load(saved, mesh=mesh)
    same(again.params, lm.params)
    assert all(4 * np.prod(shape) <= piece or shape[0] == 1 for shape in held)
    for name, leaf in again.params.items():
        spec = axes.spec(axes.letters(name), leaf.shape, mesh)
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim), name


def test_what_devices_share_is_read_once(saved, monkeypatch):
    held, pages = [], stored._pages
    monkeypatch.setattr(stored, '_pages', lambda shape, *more: held.append(np.prod(shape)) or pages(shape, *more))
    params = load(saved, mesh=axes.make_mesh({'data': 4, 'fsdp': 2})).params
    assert sum(held) == sum(x.size for x in params.values())


ONE_OF_TWO = """
import sys
from pathlib import Path
import jax
import numpy as np
folder, port, process = Path(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(f'localhost:{port}', 2, int(process))
from rlaif_jax import axes
from rlaif_jax.models import hf, stored

class Counted:
    def __init__(self, tensor):
        self.tensor = tensor
    def __getitem__(self, at):
        found = self.tensor[at]
        asked.append(found.size)
        return found
    def __getattr__(self, name):
        return getattr(self.tensor, name)

asked, opened = [], stored._open
cfg, here = hf.read_config(folder), axes.make_mesh(devices=jax.local_devices())
whole = stored.read_params(folder, cfg, here)
stored._open = lambda folder: {name: Counted(x) for name, x in opened(folder).items()}
params = stored.read_params(folder, cfg, axes.make_mesh({'fsdp': 2}))
for name, x in params.items():
    (shard,) = x.addressable_shards
    np.testing.assert_array_equal(shard.data, np.asarray(whole[name])[shard.index], err_msg=name)
print(sum(asked), sum(x.size for x in params.values()))
"""


@pytest.mark.slow
def test_a_process_reads_what_its_own_devices_hold(saved):
    """Of two processes with a device each, either half of what is split; and neither waits for the other."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, '-W', 'ignore', '-c', ONE_OF_TWO, str(saved), port]
    one_device = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'encoding': 'utf-8', 'env': one_device}
    with (
        subprocess.Popen([*command, '0'], **pipes, cwd=ROOT) as one,
        subprocess.Popen([*command, '1'], **pipes, cwd=ROOT) as other,
    ):
        for process in (one, other):
            out, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
            read, there = map(int, out.split())
            assert read == there / 2


def test_a_number_is_finite_however_large(lm, tmp_path):
    """Also where the sum of them is not."""
    large = dataclasses.replace(lm, params=lm.params | {'embed_VD': lm.params['embed_VD'] * 0 + 3e38})
    save(large, tmp_path / 'out')
    same(load(tmp_path / 'out').params, large.params)
    rewrite(lambda t: t['model.norm.weight'].__setitem__(3, -np.inf))(tmp_path / 'out')
    with pytest.raises(Mistake, match=r'/out: model\.norm\.weight .*NaN'):
        load(tmp_path / 'out')


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32', 'float64'])
def test_in_every_dtype_all_that_is_finite_is_read_and_nothing_else(saved, tmp_path, dtype):
    shutil.copytree(saved, tmp_path / 'out')
    dtype, name = np.dtype(dtype), 'model.layers.1.mlp.up_proj.weight'
    largest = jnp.finfo(dtype).max if dtype != np.float64 else jnp.finfo(jnp.float32).max
    extremes = np.array([largest, -largest, jnp.finfo(dtype).tiny, -0.0, -1.0], dtype)
    up = np.resize(extremes, (CFG.ffn, CFG.width))
    rewrite(lambda t: t.update({name: up}))(tmp_path / 'out')
    read = np.asarray(load(tmp_path / 'out').params['up_LDF'])[1]
    np.testing.assert_array_equal(read.T.view(np.uint32), up.astype(np.float32).view(np.uint32))
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        up[3, 5] = bad
        rewrite(lambda t: t.update({name: up}))(tmp_path / 'out')
        with pytest.raises(Mistake, match=r'/out: .*\.1\.mlp\.up_proj\.weight .*NaN'):
            load(tmp_path / 'out')


def test_bfloat16_goes_out_and_comes_in_exactly(lm, tmp_path):
    rounded = {name: x.astype(jnp.bfloat16).astype(jnp.float32) for name, x in lm.params.items()}
    save(dataclasses.replace(lm, params=rounded), tmp_path / 'out', dtype='bfloat16')
    assert {x.dtype.name for x in tensors(tmp_path / 'out').values()} == {'bfloat16'}
    same(load(tmp_path / 'out').params, rounded)
    assert load(tmp_path / 'out', dtype='bfloat16').config.dtype == 'bfloat16'
    frozen = load(tmp_path / 'out', dtype='bfloat16', mesh=axes.make_mesh({'data': 2, 'fsdp': 2}), frozen=True)
    assert frozen.params['query_LDNH'].dtype == jnp.bfloat16
    save(frozen, tmp_path / 'again', dtype='bfloat16')
    same(tensors(tmp_path / 'again'), tensors(tmp_path / 'out'))


@pytest.mark.parametrize(
    'more', [{}, {'tied': True, 'kv_heads': 4, 'activation': 'gelu', 'ropes': (Rope(5e5, factor=2.0),)}]
)
def test_a_config_comes_back(micro_tokenizer, tmp_path, more):
    cfg = dataclasses.replace(CFG, **more)
    (tmp_path / 'config.json').write_text(json.dumps(hf.write_config(cfg, micro_tokenizer)), encoding='utf-8')
    assert hf.read_config(tmp_path) == cfg


def test_transformers_reads_the_config(saved):
    from transformers import AutoConfig, AutoTokenizer

    theirs = AutoConfig.from_pretrained(saved)
    assert (theirs.model_type, theirs.hidden_size, theirs.num_key_value_heads) == ('llama', CFG.width, CFG.kv_heads)
    theirs.save_pretrained(saved.parent / 'theirs')
    assert hf.read_config(saved.parent / 'theirs') == CFG  # whatever it writes today
    assert AutoTokenizer.from_pretrained(saved).eos_token == '<eos>'


# saving


def test_a_save_replaces_what_an_earlier_save_left(lm, tmp_path):
    save(lm, tmp_path / 'out', shard_bytes=4000)
    save(lm, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'model.safetensors.index.json').exists()
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    assert (tmp_path / 'out').stat().st_mode & 0o055  # as readable as any new directory
    same(load(tmp_path / 'out').params, lm.params)


def test_a_saved_model_is_as_private_as_the_umask_asks(lm, tmp_path):
    before = os.umask(0o077)
    try:
        save(lm, tmp_path / 'out')
    finally:
        os.umask(before)
    assert not any(path.stat().st_mode & 0o077 for path in [tmp_path / 'out', *(tmp_path / 'out').iterdir()])


@pytest.mark.parametrize('kind', [OSError, safetensors.SafetensorError])
def test_a_save_that_fails_leaves_everything_as_it_was(lm, tmp_path, monkeypatch, kind):
    save(lm, tmp_path / 'out')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()}

    def full(*args, **named):
        raise kind('error in a header: No space left on device (os error 28)')

    monkeypatch.setattr(safetensors.numpy, 'save_file', full)
    for name in ('out', 'new'):
        with pytest.raises(Passing, match=f'/{name}: .*No space left'):
            save(lm, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ['out']
    assert {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()} == before


def test_a_save_loses_no_parameter(lm, tmp_path):
    biased = dataclasses.replace(lm, params=lm.params | {'query_bias_LNH': jnp.zeros((2, 4, 6))})
    with pytest.raises(Mistake, match='/out: .*query_bias_LNH'):
        save(biased, tmp_path / 'out')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'change, dtype, says',
    [
        (lambda norm: norm * np.nan, 'float32', r'model\.norm\.weight .*NaN'),
        (lambda norm: norm + 1e6, 'float16', r'model\.norm\.weight .*float16.* bfloat16'),
        (lambda norm: norm[:3], 'float32', r'/out: .*final_norm_D .*\(3,\).*\(8,\)'),
    ],
)
def test_a_save_writes_nothing_that_is_not_read_back(lm, tmp_path, change, dtype, says):
    params = lm.params | {'final_norm_D': change(lm.params['final_norm_D'])}
    with pytest.raises(Mistake, match=says):
        save(dataclasses.replace(lm, params=params), tmp_path / 'out', dtype=dtype)
    del params['final_norm_D']
    with pytest.raises(Mistake, match=r'/out: .*final_norm_D .*\(8,\)'):
        save(dataclasses.replace(lm, params=params), tmp_path / 'out', dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_folder_may_have_any_name_that_a_file_system_holds(lm, tmp_path):
    save(lm, tmp_path / ('n' * 255))
    same(load(tmp_path / ('n' * 255)).params, lm.params)


# bad checkpoints


def change(name, **fields):
    """Other fields in a JSON file; None takes one away."""

    def spoil(folder):
        raw = json.loads((folder / name).read_text(encoding='utf-8')) | fields
        (folder / name).write_text(json.dumps({k: v for k, v in raw.items() if v is not None}), encoding='utf-8')

    return spoil


def rewrite(edit):
    """Other tensors in the file."""

    def spoil(folder):
        stored = tensors(folder)
        edit(stored)
        safetensors.numpy.save_file(stored, folder / 'model.safetensors')

    return spoil


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(folder):
    data = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(data[: len(data) // 2])


def pickles_only(folder):
    (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')


def index(weight_map):
    def spoil(folder):
        (folder / 'model.safetensors').unlink()  # which goes before an index
        (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}), encoding='utf-8')

    return spoil


def write(name, text):
    return lambda folder: (folder / name).write_text(text, encoding='utf-8')


BAD = {
    'no config': (remove('config.json'), r'no config\.json'),
    'bad JSON': (write('config.json', '{"model_type": '), r'/config\.json: .*JSON.*fetch'),
    'not a table': (write('config.json', '[]'), r'/config\.json: .*table.*fetch'),
    'unknown family': (change('config.json', model_type='mamba'), "model_type = 'mamba' .* llama, mistral,"),
    'unknown field': (change('config.json', logit_softcap=30.0), "'logit_softcap'.* RLAIF_IGNORE_FIELDS=logit_softcap"),
    'rope scaling': (
        change('config.json', rope_scaling={'factor': 8.0}),
        r"'rope_scaling\.factor'.* RLAIF_IGNORE_FIELDS=rope_scaling\.factor",
    ),
    'rope type': (
        change('config.json', rope_parameters={'rope_type': 'axial'}),
        "rope_parameters: rope_type = 'axial' .* linear",
    ),
    'rope field': (
        change('config.json', rope_parameters={'partial': 0.5}),
        r"'rope_parameters\.partial'.* RLAIF_IGNORE_FIELDS=rope_parameters\.partial",
    ),
    'attention bias': (change('config.json', attention_bias=True), r'lacks 8 .*k_proj\.bias'),
    'sliding window': (
        change('config.json', sliding_window=512),
        'sliding_window = 512 .* RLAIF_IGNORE_FIELDS=sliding_window',
    ),
    'activation': (change('config.json', hidden_act='relu'), "hidden_act = 'relu' .* silu,"),
    'missing field': (change('config.json', vocab_size=None), r"/config\.json: .*'vocab_size'"),
    'heads do not divide': (change('config.json', num_key_value_heads=3), 'kv_heads = 3 .* heads = 4'),
    'no number': (change('config.json', hidden_size='large'), "hidden_size = 'large' .*whole number"),
    'missing tensor': (rewrite(lambda t: t.pop('model.norm.weight')), r'lacks 1 .* model\.norm\.weight'),
    'more layers': (change('config.json', num_hidden_layers=3), r'lacks 9 .* model\.layers\.2\.'),
    'fewer layers': (change('config.json', num_hidden_layers=1), r'holds 9 .* model\.layers\.1\.'),
    'extra tensor': (rewrite(lambda t: t.update({'x.bias': np.zeros(3)})), r'holds 1 .* x\.bias'),
    'wrong shape': (
        change('config.json', intermediate_size=13),
        r'\.mlp\.\w+\.weight .*\(12, 8\).*config\.json .*\(13, 8\)',
    ),
    'half a file': (truncate, r'/model\.safetensors: .*fetch'),
    'no weights': (remove('model.safetensors'), r'no model\.safetensors '),
    'pickles': (pickles_only, r'pytorch_model\.bin .*pickle.*save_pretrained'),
    'no tokenizer': (remove('tokenizer.json'), r'no tokenizer\.json'),
    'no such shard': (index({'model.norm.weight': 'gone.safetensors'}), r'gone\.safetensors .*fetch'),
    'no index': (
        lambda f: [remove('model.safetensors')(f), write('model.safetensors.index.json', '{}')(f)],
        r'/model\.safetensors\.index\.json: .*fetch',
    ),
    'an index of nothing': (
        lambda f: [remove('model.safetensors')(f), write('model.safetensors.index.json', '[]')(f)],
        r'/model\.safetensors\.index\.json: .*fetch',
    ),
    'an end beyond the vocabulary': (
        change('generation_config.json', eos_token_id=10**6),
        r'/generation_config\.json: eos_token_id = 1000000 ',
    ),
    'an end that is a word': (
        change('generation_config.json', eos_token_id='end'),
        r"/generation_config\.json: eos_token_id = 'end' ",
    ),
    'no end': (
        lambda f: [
            change('tokenizer_config.json', eos_token=None)(f),
            change('config.json', eos_token_id=None)(f),
            remove('generation_config.json')(f),
        ],
        r'eos_token in tokenizer_config\.json',
    ),
}


@pytest.mark.parametrize('spoil, says', BAD.values(), ids=BAD.keys())
def test_a_bad_checkpoint_is_named(saved, tmp_path, spoil, says):
    folder = shutil.copytree(saved, tmp_path / 'spoilt')
    spoil(folder)
    with pytest.raises(Mistake, match=says) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(Mistake, match='/nothing: .* micro_l, micro_s, micro_xs'):
        load(tmp_path / 'nothing')


def test_a_name_leads_to_a_packaged_model_or_the_nearest(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(presets, 'PACKAGED', tmp_path)
    shutil.copytree(saved, tmp_path / 'micro_tiny')
    assert presets.resolve('micro_tiny') == tmp_path / 'micro_tiny'
    with pytest.raises(Mistake, match='micro_tyni: .* micro_tiny'):
        load('micro_tyni')
    with pytest.raises(Mistake, match='gpt: .* micro_tiny'):
        load('gpt')


# the public surface


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    code = 'import rlaif_jax, sys; print([m for m in ("jax", "flax", "transformers", "numpy") if m in sys.modules])'
    root = Path(rlaif_jax.__file__).parents[1]
    out = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, encoding='utf-8', timeout=60)
    assert (out.stdout.strip(), out.returncode) == ('[]', 0), out.stderr


def test_the_public_names_are_the_ones_our_stages_call():
    from rlaif_jax.labeling.direct import rate
    from rlaif_jax.labeling.preference import label

    assert rlaif_jax.load is load and rlaif_jax.save is save and rlaif_jax.LM is LM
    assert rlaif_jax.generate is generate and rlaif_jax.rate is rate and rlaif_jax.label is label
    assert rlaif_jax.logits is hf.logits
    assert all(hasattr(rlaif_jax, name) for name in rlaif_jax.__all__)
    with pytest.raises(AttributeError, match="'lode'.* load, save,"):
        rlaif_jax.lode  # noqa: B018


def test_a_fingerprint_is_of_the_weights_behind_a_name(tmp_path, micro_tokenizer):
    from rlaif_jax.models import hf, transformer

    cfg = transformer.Config(vocab=1152, layers=1, width=16, heads=1, kv_heads=1, head_dim=16, ffn=16)
    prints = []
    for seed in (0, 0, 1):
        hf.save(hf.LM(cfg, transformer.init(cfg, jax.random.key(seed)), micro_tokenizer, 'm'), tmp_path / 'm')
        prints.append(hf.fingerprint(tmp_path / 'm'))
    assert prints[0] == prints[1] != prints[2]


def test_a_tensor_in_two_files_is_the_one_that_the_index_names(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / 'twice')
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    old = {'model.norm.weight': tensors['model.norm.weight'] + 1}
    for name, held in (('a.safetensors', tensors), ('b.safetensors', old | {'more': old['model.norm.weight']})):
        safetensors.numpy.save_file(held, folder / name, metadata={'format': 'pt'})
    where = dict.fromkeys(tensors, 'a.safetensors')
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}), encoding='utf-8')
    np.testing.assert_array_equal(hf.load(folder).params['final_norm_D'], tensors['model.norm.weight'])
    (folder / 'model.safetensors.index.json').write_text(
        json.dumps({'weight_map': where | {'model.norm.weight': 'b.safetensors', 'more': 'b.safetensors'}}),
        encoding='utf-8',
    )
    with pytest.raises(Mistake, match='/twice: .* 1 tensors .* more$'):
        hf.load(folder)
