"""Laws of what is no checkpoint, or not one that we read: the error tells what was found there, and what helps."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import rlaif_jax
from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.models import hf, stored
from rlaif_jax.models.hf import LM, load
from rlaif_jax.models.transformer import Config
from rlaif_jax.training import reward_model

SIZES = Config(vocab=1152, layers=1, width=8, heads=2, kv_heads=1, head_dim=4, ffn=12, tied=False)
LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1150288\n'
HTML = b'\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>'
BOM = b'\xef\xbb\xbf'


@pytest.fixture
def folder(random_params, micro_tokenizer, tmp_path):
    """A checkpoint, to be spoilt."""
    hf.save(LM(SIZES, random_params(SIZES), micro_tokenizer, 'tiny'), tmp_path / 'model')
    return tmp_path / 'model'


def tensors(folder):
    return safetensors.numpy.load_file(folder / 'model.safetensors')


def renamed(new):
    """Each tensor under another name."""

    def spoil(folder):
        found = {new(name): x for name, x in tensors(folder).items()}
        safetensors.numpy.save_file(found, folder / 'model.safetensors')

    return spoil


def more(name, x=None):
    """One tensor more."""

    def spoil(folder):
        found = tensors(folder) | {name: np.zeros((1, SIZES.width), np.float32) if x is None else x}
        safetensors.numpy.save_file(found, folder / 'model.safetensors')

    return spoil


def only(**files):
    """Nothing but these files."""

    def spoil(folder):
        for path in folder.iterdir():
            path.unlink()
        [(folder / name).write_bytes(data) for name, data in files.items()]

    return lambda folder: spoil(folder)


def moved(name, to):
    def spoil(folder):
        (folder / to).parent.mkdir(exist_ok=True)
        (folder / name).rename(folder / to)

    return spoil


def within(*names):
    """The whole checkpoint in folders below; nothing else here."""

    def spoil(folder):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        only()(folder)
        for name in names:
            (folder / name).mkdir(parents=True)
            [(folder / name / file).write_bytes(data) for file, data in files.items()]

    return spoil


def holds(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def says(name, **fields):
    def spoil(folder):
        raw = json.loads((folder / name).read_text(encoding='utf-8'))
        (folder / name).write_text(json.dumps(raw | fields), encoding='utf-8')

    return spoil


def both(*spoils):
    return lambda folder: [spoil(folder) for spoil in spoils]


ADAPTER = {'adapter_config.json': b'{"base_model_name_or_path": "someone/base"}', 'adapter_model.safetensors': b''}
FOUND = {
    'an adapter': (only(**ADAPTER), r'adapter .*someone/base.*merge_and_unload'),
    'an adapter of pickles': (
        only(**ADAPTER | {'adapter_model.bin': b'\x80', 'training_args.bin': b'PK'}),
        'adapter .*someone/base.*merge_and_unload',
    ),
    'an adapter that has a config': (
        both(moved('model.safetensors', 'adapter_model.safetensors'), holds('adapter_config.json', b'{}')),
        'adapter .* None, .*merge_and_unload',
    ),
    'a model and an adapter': (holds('adapter_config.json', b'{}'), r'model and .*adapter \(adapter_config\.json\)'),
    'GGUF alone': (only(**{'tiny-Q4.gguf': b'GGUF'}), r'tiny-Q4\.gguf .*GGUF.* safetensors '),
    'GGUF for weights': (both(moved('model.safetensors', 'tiny.gguf')), r'tiny\.gguf .*GGUF.* safetensors '),
    'GGUF under another name': (holds('model.safetensors', b'GGUF\3\0\0\0'), r'/model\.safetensors: .*GGUF.* safetensors '),
    "a Trainer's folder": (
        both(within('checkpoint-90', 'checkpoint-500', 'runs'), holds('training_args.bin', b'PK')),
        r'config\.json .*/checkpoint-500\b',
    ),
    'a run of ours': (within('export', 'seven7'), r'config\.json .*/export\b'),
    'a run that is not finished': (only(**{'metrics.jsonl': b'', 'a.json': b'{}'}), "run's folder.* export/"),
    'checkpoints of Orbax': (only(**{'_CHECKPOINT_METADATA': b'{}'}), 'Orbax; .* export/ '),
    "the hub's cache": (within('snapshots/0123'), r'config\.json .*/snapshots/0123\b'),
    'one folder too high': (within('final'), r'config\.json .*/final\b'),
    'no files': (only(), r'config\.json .*empty'),
    'files of something else': (only(**{'a.txt': b'', 'b.txt': b''}), r'config\.json .* a\.txt, b\.txt'),
    'shards without an index': (
        moved('model.safetensors', 'model-00001-of-00002.safetensors'),
        r'-00001-of-00002\.safetensors .* model\.safetensors\.index\.json .*fetch',
    ),
    'weights under another name': (
        moved('model.safetensors', 'pytorch_model.safetensors'),
        r'pytorch_model\.safetensors .* model\.safetensors ',
    ),
    'weights of Flax': (moved('model.safetensors', 'flax_model.msgpack'), r'flax_model\.msgpack .*Flax.* safetensors '),
    'a pickle': (moved('model.safetensors', 'pytorch_model.bin'), r'pytorch_model\.bin .*pickle.*save_pretrained'),
    'a pickle under another name': (holds('model.safetensors', b'PK\x03\x04' + bytes(90)), r'model\.safetensors: .*pickle'),
    **{
        f'{kind} for {name}': (holds(name, data), f'{name}.*{what}' if 'token' not in name else what)
        for kind, data, what in (('LFS', LFS, 'LFS.*git lfs pull'), ('HTML', HTML, 'HTML.*fetch'))
        for name in ('config.json', 'tokenizer_config.json', 'tokenizer.json', 'model.safetensors')
    },
    'an index that is a page': (
        both(moved('model.safetensors', 'a.safetensors'), holds('model.safetensors.index.json', HTML)),
        r'index\.json: .*HTML.*fetch',
    ),
    'weights alone': (only(**{'model.safetensors': b''}), r'no config\.json .* model\.safetensors$'),
    'a folder for weights': (
        lambda f: ((f / 'model.safetensors').unlink(), (f / 'model.safetensors').mkdir()),
        r': model\.safetensors .*no file.*fetch',
    ),
    'links to nowhere': (
        lambda f: ((f / 'model.safetensors').unlink(), (f / 'model.safetensors').symlink_to('../../blobs/1f')),
        r'model\.safetensors .*link.* \.\./\.\./blobs/1f, .*cp -L',
    ),
    'an index that names no file': (
        both(
            moved('model.safetensors', 'a.safetensors'),
            holds('model.safetensors.index.json', b'{"weight_map": {"model.norm.weight": ".."}}'),
        ),
        r': \.\. .*no file.*fetch',
    ),
    'an index that leads away': (
        both(
            moved('model.safetensors', 'a.safetensors'),
            holds('model.safetensors.index.json', b'{"weight_map": {"model.norm.weight": "../a.safetensors"}}'),
        ),
        r'index\.json: not the index',
    ),
    'SentencePiece': (
        moved('tokenizer.json', 'tokenizer.model'),
        r'no tokenizer\.json .* tokenizer\.model, .*sentencepiece.*save_pretrained',
    ),
    'a vocabulary and merges': (
        moved('tokenizer.json', 'vocab.json'),
        r'no tokenizer\.json .* vocab\.json, .*merges\.txt.*save_pretrained',
    ),
    'a mark in tokenizer.json': (
        lambda f: holds('tokenizer.json', BOM + (f / 'tokenizer.json').read_bytes())(f),
        'tokenizer .*byte order mark.*UTF-8',
    ),
    'module.': (renamed('module.{}'.format), r"'module\.', .*DataParallel.* \.module"),
    '_orig_mod.': (renamed('_orig_mod.{}'.format), r"'_orig_mod\.', .*torch\.compile"),
    'both wrappers': (renamed('module._orig_mod.{}'.format), r"'module\._orig_mod\.', .*DataParallel"),
    'peft': (renamed('base_model.model.{}'.format), r"'base_model\.model\.', .*merge_and_unload"),
    'a model without its head': (renamed(lambda name: name.removeprefix('model.')), r"without 'model\.'.*AutoModel"),
    'images and text': (
        renamed(lambda name: f'model.language_model.{name.removeprefix("model.")}'),
        r"'model\.language_model\.', .*images",
    ),
    'images and text as of old': (renamed('language_model.{}'.format), r"'language_model\.', .*images"),
    'a reward model': (more('score.weight'), r'score\.weight .*reward_model\.load'),
    'an adapter within': (more('model.layers.0.self_attn.q_proj.lora_A.weight'), r'lora_A\.weight .*merge_and_unload'),
    'GPTQ': (more('model.layers.0.self_attn.q_proj.qweight', np.zeros((2, 2), np.int32)), 'qweight .*GPTQ or AWQ'),
    'GPTQ by its config': (says('config.json', quantization_config={'quant_method': 'gptq', 'bits': 4}), ' gptq .* 4 bits'),
    'AWQ by its config': (says('config.json', quantization_config={'quant_method': 'awq', 'w_bit': 4}), ' awq .* 4 bits'),
    'bitsandbytes': (says('config.json', quantization_config={'load_in_4bit': True}), ' bitsandbytes.*bfloat16'),
    'MLX': (says('config.json', quantization={'group_size': 64, 'bits': 4}), ' MLX .* 4 bits.*bfloat16'),
    'eight bits': (
        lambda f: more('model.norm.weight', tensors(f)['model.norm.weight'].astype(np.int8))(f),
        r'model\.norm\.weight .* I8,',
    ),
}  # fmt: skip


@pytest.mark.parametrize('read', [load, hf.check], ids=['load', 'check'])
@pytest.mark.parametrize('spoil, tells', FOUND.values(), ids=FOUND.keys())
def test_an_error_tells_what_was_found(folder, spoil, tells, read):
    spoil(folder)
    with pytest.raises(Mistake, match=tells) as error:
        read(folder)
    assert str(folder) in str(error.value)


def test_a_language_model_is_no_reward_model(folder):
    with pytest.raises(Mistake, match=r' score\.weight; .*language model'):
        reward_model.load(folder)


def test_our_own_adapter_leads_to_the_model_above_it(folder):
    (folder / 'adapter').mkdir()
    (folder / 'adapter/adapter_config.json').write_text('{"base_model_name_or_path": "someone/base"}', encoding='utf-8')
    with pytest.raises(Mistake, match=f'adapter .*someone/base; .* {folder}$'):
        load(folder / 'adapter')


def test_checkpoints_of_a_run_lead_to_its_export(folder):
    within('export')(folder)
    (folder / 'checkpoints/40').mkdir(parents=True)
    for name in ('checkpoints', 'checkpoints/40'):
        with pytest.raises(Mistake, match=rf'config\.json .* {folder}/export\b'):
            load(folder / name)


@pytest.mark.parametrize('name', ['', ' ', None, 123, 1.5, ['micro_xs'], True])
def test_what_is_no_name_is_no_model(name):
    for read in (load, hf.check, reward_model.load):
        with pytest.raises(Mistake, match=rf'(?=.*\bpath\b).*{re.escape(repr(name))}'):
            read(name)


def test_a_file_is_no_folder(folder):
    for name in ('model.safetensors', 'config.json'):
        with pytest.raises(Mistake, match=rf'{name}: .* {folder}\?'):
            load(folder / name)
    (folder.parent / 'tiny.gguf').write_bytes(b'GGUF')
    with pytest.raises(Mistake, match=r'/tiny\.gguf: .*GGUF.* safetensors '):
        load(folder.parent / 'tiny.gguf')


@pytest.mark.parametrize('dtype', ['float16', 'int8', 'auto', None, np.float32])
def test_products_are_in_float32_or_bfloat16(folder, dtype):
    for read in (load, reward_model.load):
        with pytest.raises(Mistake, match=f'dtype = {re.escape(repr(dtype))} .* float32, bfloat16'):
            read(folder, dtype=dtype)


def test_files_are_read_whatever_the_locale(folder):
    """And with the byte order mark that some editors put before them."""
    stored_text = json.loads((folder / 'config.json').read_bytes()) | {'_name_or_path': '模型/é'}
    (folder / 'config.json').write_bytes(BOM + json.dumps(stored_text, ensure_ascii=False).encode())
    generation = json.loads((folder / 'generation_config.json').read_bytes())
    (folder / 'generation_config.json').write_text(json.dumps(generation | {'note': 'ß'}, ensure_ascii=False), 'utf-16')
    code = (
        f'import locale, rlaif_jax; print(rlaif_jax.load({str(folder)!r}).config.vocab, locale.getpreferredencoding())'
    )
    plain = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, '-c', code], env=os.environ | plain, capture_output=True, encoding='utf-8')
    assert done.stdout.split()[:1] == ['1152'] and 'UTF' not in done.stdout.upper(), done.stderr


# one fact in two places


def test_a_head_that_is_not_the_embedding_is_the_models_head(folder, capsys):
    """Whatever the config says of it, as transformers has it; one that is the embedding is it."""
    wanted = rlaif_jax.logits(load(folder), [[5, 6, 7]])
    log.say_once.cache_clear()
    says('config.json', tie_word_embeddings=True)(folder)
    lm = load(folder)
    assert not lm.config.tied and re.search(f'{folder}: .* lm_head.weight ', capsys.readouterr().out)
    np.testing.assert_array_equal(rlaif_jax.logits(lm, [[5, 6, 7]]), wanted)
    assert hf.check(folder).tied  # a plan reads no tensors
    embed = tensors(folder)['model.embed_tokens.weight']
    for head in (embed, embed.astype('float64')):
        more('lm_head.weight', head)(folder)
        assert load(folder).config.tied and 'unembed_DV' not in load(folder).params
    for row, column in ((0, 0), (1151, 7), (700, 3)):
        other = embed.copy()
        other[row, column] += 2**-20 + abs(other[row, column]) * 2**-20
        more('lm_head.weight', other)(folder)
        assert not load(folder).config.tied
    more('lm_head.weight', embed[1:])(folder)
    with pytest.raises(Mistake, match=r'lm_head\.weight .*\(1151, 8\).*\(1152, 8\)'):
        load(folder)
    assert capsys.readouterr().out == ''  # said once


def test_of_two_names_for_a_tied_embedding_either_is_enough(folder):
    says('config.json', tie_word_embeddings=True)(folder)
    embed = tensors(folder)['model.embed_tokens.weight']
    renamed(lambda name: 'lm_head.weight' if 'embed_tokens' in name else name)(folder)
    del_head = tensors(folder)
    safetensors.numpy.save_file(del_head | {'lm_head.weight': embed}, folder / 'model.safetensors')
    lm = load(folder)
    assert lm.config.tied
    np.testing.assert_array_equal(lm.params['embed_VD'], embed)


def test_a_head_is_read_no_further_than_it_has_to_be(folder, monkeypatch):
    says('config.json', tie_word_embeddings=True)(folder)
    read, opened = [], stored._open
    monkeypatch.setattr(stored, 'PIECE', 100 * 4 * SIZES.width)
    monkeypatch.setattr(stored, '_open', lambda folder: {n: Counted(x, read) for n, x in opened(folder).items()})
    stored.untied(folder, hf.read_config(folder))
    assert read == [slice(0, 100)] * 2


class Counted:
    """A stored tensor that notes what is asked of it."""

    def __init__(self, tensor, read):
        self.tensor, self.read = tensor, read

    def __getitem__(self, at):
        self.read.append(at)
        return self.tensor[at]

    def __getattr__(self, name):
        return getattr(self.tensor, name)


@pytest.mark.parametrize(
    'tokens, tells',
    [
        ([[5, 1152]], 'token_BT: .* 0 to 1151, .* 5 to 1152'),
        ([[-1, 5]], 'token_BT: .* -1 to 5'),
        ([[5, 2**40]], f'token_BT: .* 5 to {2**40}'),
        ([[5, 6], [7]], 'token_BT, mask_BT: .*length'),
        ([5, 6], r'token_BT .*\(2,\).*\(B, T\)'),
        ([[0.5, 1.0]], 'token_BT .* float64'),
        ([['a']], 'token_BT .* <U1.*whole numbers'),
    ],
)
def test_logits_are_of_the_models_tokens(folder, tokens, tells):
    with pytest.raises(Mistake, match=tells):
        rlaif_jax.logits(load(folder), tokens)


def test_tokens_may_be_of_any_whole_number(folder):
    lm = load(folder)
    for kind in (np.uint8, np.int16, np.uint16, np.int64, np.uint64):
        np.testing.assert_array_equal(
            rlaif_jax.logits(lm, np.array([[5, 200]], kind)), rlaif_jax.logits(lm, [[5, 200]])
        )


@pytest.mark.parametrize('mesh', [0, 4, 'data'])
def test_a_mesh_is_a_mesh(folder, mesh):
    with pytest.raises(Mistake, match='make_mesh'):
        rlaif_jax.load(folder, mesh=mesh)


def test_what_stands_in_the_padding_does_not_matter(folder):
    lm = load(folder)
    padded = rlaif_jax.logits(lm, [[5, 6, -100]], [[True, True, False]])
    np.testing.assert_allclose(padded[:, :2], rlaif_jax.logits(lm, [[5, 6]]), rtol=0, atol=1e-6)
    with pytest.raises(Mistake, match=r'mask_BT \(1, 1\)'):
        rlaif_jax.logits(lm, [[5, 6]], [[True]])
