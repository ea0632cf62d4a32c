"""Laws of what leaves the project: every version of transformers that people have reads what we read. Each version is in an
environment of its own; RLAIF_TRANSFORMERS holds the paths of their Pythons, with colons between.
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import families as small
import jax
import numpy as np
import pytest
import tokenizers
from conftest import SHARED

import rlaif_jax
from rlaif_jax import axes
from rlaif_jax.models import families, hf, lora, stored
from rlaif_jax.models.hf import LM
from rlaif_jax.models.transformer import Config
from rlaif_jax.text import PROBE, Tokenizer
from rlaif_jax.training import reward_model

PYTHONS = [path for path in os.environ.get('RLAIF_TRANSFORMERS', '').split(':') if path]
CHATML = (
    '{% for m in messages %}<|turn_start|>{{ m.role }}\n{{ m.content }}<|turn_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|turn_start|>assistant\n{% endif %}'
)
TEXTS = ['a post\n\nTL;DR: my boss', PROBE, 'one two', '']
SIZES = Config(vocab=1152, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, ffn=24, max_length=64)
TOKEN_BT, VALID_BT = small.tokens()


def words(folder, kind='lm', chat=None, rows=TOKEN_BT, mask=VALID_BT, **more):
    """A task for `reads_exports.py`."""
    asked = chat and [{'role': 'user', 'content': chat}]
    rows, mask = np.asarray(rows).tolist(), np.asarray(mask).astype(int).tolist()
    return {'folder': str(folder), 'kind': kind, 'texts': TEXTS, 'rows': rows, 'mask': mask, 'chat': asked} | more


@pytest.fixture(scope='module')
def talking(micro_tokenizer, tmp_path_factory):
    """The micro world's tokenizer with two more control tokens and a chat template that writes them, as a checkpoint."""
    folder = tmp_path_factory.mktemp('talking')
    micro_tokenizer.hf.save_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    tokenizer.hf.add_special_tokens({'extra_special_tokens': ['<|turn_start|>', '<|turn_end|>']})
    tokenizer.hf.chat_template = CHATML
    tokenizer.hf.save_pretrained(folder)
    return Tokenizer.load(folder)


def adapted(random_params, tokenizer, folder):
    """A model with adapters that change its numbers, the folder of its base beside it."""
    base = LM(SIZES, random_params(SIZES, 5), tokenizer, str(folder / 'base'))
    hf.save(base, folder / 'base')
    cfg = lora.Config(rank=2)
    adapters = {name: x + 0.1 for name, x in lora.init(cfg, SIZES, jax.random.key(1)).items()}
    return dataclasses.replace(base, config=lora.adapted(cfg, SIZES), params=base.params | adapters)


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def qwen(folder):
    """A tokenizer as Qwen 2 has it, which transformers makes anew from its vocabulary whenever it reads one."""
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN), 'isolated')
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.pre_tokenizer, words.decoder = (
        tokenizers.pre_tokenizers.Sequence([split, level]),
        tokenizers.decoders.ByteLevel(),
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special)
    words.train_from_iterator(TEXTS * 9, trainer)
    folder.mkdir()
    words.save(str(folder / 'tokenizer.json'))
    named = {'tokenizer_class': 'Qwen2Tokenizer', 'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}
    named |= {'chat_template': CHATML.replace('turn', 'im'), 'additional_special_tokens': special[1:]}
    (folder / 'tokenizer_config.json').write_text(json.dumps(named), encoding='utf-8')
    return Tokenizer.load(folder)


@pytest.fixture(scope='module')
def exports(random_params, micro_tokenizer, talking, tmp_path_factory):
    """name → task: an export of every kind, those of a real model among them where its files are there."""
    root, tasks = tmp_path_factory.mktemp('exports'), {}
    for case in small.CASES:
        known = small.golden(case)
        theirs = small.write(root / f'their_{case}', known['config'], known['shapes'])
        cfg = hf.read_config(theirs)
        params = stored.read_params(theirs, cfg, axes.make_mesh())
        hf.save(LM(cfg, params, micro_tokenizer, case), root / case)
        tasks[case] = words(root / case, texts=[])  # the tokenizer is not one of its family
    lm = LM(SIZES, random_params(SIZES), talking, 'talking')
    hf.save(lm, root / 'talking')
    tasks['talking'] = words(root / 'talking', chat='what is it?')
    hf.save(lm, root / 'rough', dtype='bfloat16', shard_bytes=20_000)
    tasks['rough'] = words(root / 'rough')
    scoring = {'trunk': lm.params, 'head': {'head_D': np.linspace(-1, 1, SIZES.width), 'head_bias': np.zeros(())}}
    reward_model.save(reward_model.RewardModel(SIZES, scoring, talking, 'score'), root / 'score')
    tasks['score'] = words(root / 'score', 'score', 'what is it?', TOKEN_BT[:1], VALID_BT[:1])
    hf.save(adapted(random_params, talking, root), root / 'adapted')
    tasks['adapted'] = words(root / 'adapted')
    tasks['adapter'] = words(root / 'adapted', 'adapter', base=str(root / 'base'))
    config = small.golden('qwen2')['config'] | {'vocab_size': 400, 'eos_token_id': 2, 'bos_token_id': None}
    qwen2 = families.read(config, 'config.json')
    hf.save(LM(qwen2, random_params(qwen2), qwen(root / 'words'), 'qwen'), root / 'qwen')
    tasks['qwen'] = words(root / 'qwen', chat='what is it?')
    for kind in ('PreTrainedTokenizerFast', 'LlamaTokenizerFast') if SHARED.exists() else ():
        lm = rlaif_jax.load(SHARED / 'stories260k')
        lm.tokenizer.hf.save_pretrained(root / f'tokenizer_{kind}')
        named = root / f'tokenizer_{kind}' / 'tokenizer_config.json'
        named.write_text(
            json.dumps(json.loads(named.read_text(encoding='utf-8')) | {'tokenizer_class': kind}), encoding='utf-8'
        )
        hf.save(dataclasses.replace(lm, tokenizer=Tokenizer.load(named.parent)), root / kind)
        tasks[kind] = words(root / kind)
    return tasks


def ours(task):
    """What we read, in the words of `reads_exports.py`."""
    load = reward_model.load if task['kind'] == 'score' else rlaif_jax.load
    lm = load(task['folder'])
    tokenizer, ends = lm.tokenizer, list(lm.tokenizer.ends)
    ids = tokenizer.encode(task['texts'])
    raw = json.loads(Path(task['folder'], 'config.json').read_text(encoding='utf-8'))
    eos = ends[0] if len(ends) == 1 else ends
    if task['kind'] == 'score':
        logits = None
    else:
        logits = np.asarray(rlaif_jax.logits(lm, np.array(task['rows']), np.array(task['mask'], bool)))
    chat = task['chat'] and tokenizer.prompts([f'\n\nHuman: {task["chat"][0]["content"]}\n\nAssistant:'])[0]
    return logits, {
        'wrong': {},
        'config': {
            'vocab_size': lm.config.vocab, 'hidden_size': lm.config.width, 'eos_token_id': eos,
            'pad_token_id': tokenizer.pad, 'bos_token_id': tokenizer.hf.bos_token_id,
            'tie_word_embeddings': raw['tie_word_embeddings'], 'dtype': f'torch.{raw["dtype"]}',
        },
        'generation': [eos, tokenizer.pad],
        'named': [tokenizer.eos, tokenizer.hf.pad_token_id, tokenizer.hf.bos_token_id, len(tokenizer.hf)],
        'ids': ids, 'given': ['attention_mask', 'input_ids'], 'started': [[*tokenizer.start, *row] for row in ids],
        'decoded': tokenizer.decode(ids), 'chat': chat,
    }  # fmt: skip


def agree(tasks, python):
    done = subprocess.run(
        [python, Path(__file__).with_name('reads_exports.py')], input=json.dumps(tasks), text=True, capture_output=True,
        encoding='utf-8', env={**os.environ, 'PYTHONPATH': '', 'PYTHONWARNINGS': 'ignore', 'HF_HUB_OFFLINE': '1'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    read = json.loads(done.stdout.splitlines()[-1])
    for name, task in tasks.items():
        logits, expected = ours(task)
        found = read['found'][name]
        theirs = np.array(found.pop('logits'))
        assert found == expected, (read['version'], name)
        if read['version'] == '5.0.0' and name == 'olmo3':
            continue  # which stretches all layers of it, unlike versions before and after
        if logits is not None:
            mask = np.array(task['mask'], bool)
            np.testing.assert_allclose(
                theirs[mask], logits[mask], rtol=0, atol=2e-4, err_msg=f'{read["version"]} {name}'
            )


@pytest.mark.skipif(not PYTHONS, reason='RLAIF_TRANSFORMERS names no Python with another transformers')
@pytest.mark.parametrize('python', PYTHONS)
def test_every_version_of_transformers_reads_what_we_read(exports, python):
    agree(exports, python)


def test_an_export_says_what_both_versions_of_transformers_ask_for(exports):
    """Today's version reads the words of the one before; that one stumbles over today's."""
    for name, task in exports.items():
        folder = Path(task['folder'])
        named = json.loads((folder / 'tokenizer_config.json').read_text(encoding='utf-8'))
        assert not {'backend', 'is_local', 'local_files_only', 'extra_special_tokens', 'auto_map'} & set(named), name
        assert named['tokenizer_class'] == 'PreTrainedTokenizerFast'
        assert named['model_input_names'] == ['input_ids', 'attention_mask']  # all that a model's generate takes
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
        assert 'rope_parameters' not in config and config['dtype'] == config['torch_dtype']
    talking = json.loads(Path(exports['talking']['folder'], 'tokenizer_config.json').read_text(encoding='utf-8'))
    assert set(talking['additional_special_tokens']) == {'<|turn_start|>', '<|turn_end|>'}
