"""Small checkpoints of every family, for tests: what config.json says, and weights that numpy makes from their names."""

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy

GOLDEN = Path(__file__).parent / 'golden' / 'families'
LENGTH, SHORT = 20, 13  # tokens of the two rows; every window is smaller
LLAMA3 = {
    'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
}  # fmt: skip
YARN = {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 4.0, 'original_max_position_embeddings': 16}

# Odd on purpose: heads times head_dim is not the width, groups of 1, 2, 3 and 7 queries for a key-value head, texts longer
# than the windows and than what the rotary positions were made for, caps low enough to be felt.
SMALL = {
    'vocab_size': 61, 'hidden_size': 42, 'intermediate_size': 29, 'num_hidden_layers': 3, 'num_attention_heads': 7,
    'num_key_value_heads': 1, 'head_dim': 8, 'max_position_embeddings': 64, 'pad_token_id': 0, 'bos_token_id': 1,
    'eos_token_id': 2,
}  # fmt: skip
SIX = {'num_attention_heads': 6}
WHOLE = {
    name: x for name, x in SMALL.items() if name not in ('num_key_value_heads', 'head_dim')
}  # heads fill the width
CASES: dict[str, tuple[str, dict]] = {
    'llama': ('llama', SMALL | SIX | {'num_key_value_heads': 6, 'rope_parameters': {'rope_type': 'linear', 'factor': 4.0}}),
    'llama_biased': ('llama', SMALL | {
        'attention_bias': True, 'mlp_bias': True, 'tie_word_embeddings': True,
        'rope_parameters': LLAMA3 | {'rope_theta': 5e5},
    }),
    'mistral': ('mistral', SMALL | SIX | {'num_key_value_heads': 2, 'sliding_window': 5}),
    'qwen2': ('qwen2', WHOLE | {
        'num_key_value_heads': 1, 'use_sliding_window': True, 'sliding_window': 6, 'max_window_layers': 1,
        'rms_norm_eps': 1e-5,
    }),
    'qwen3': ('qwen3', SMALL | {
        'tie_word_embeddings': True, 'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6},
    }),
    'gemma': ('gemma', SMALL | SIX | {'num_key_value_heads': 1}),
    'gemma2': ('gemma2', SMALL | SIX | {
        'num_key_value_heads': 2, 'sliding_window': 5, 'query_pre_attn_scalar': 5, 'attn_logit_softcapping': 2.0,
        'final_logit_softcapping': 8.0,
    }),
    'gemma3': ('gemma3_text', SMALL | {
        'num_hidden_layers': 5, 'sliding_window': 4, 'sliding_window_pattern': 3, 'query_pre_attn_scalar': 10,
        'rope_parameters': {
            'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
        },
    }),
    'pythia': ('gpt_neox', WHOLE | {'hidden_size': 56, 'rope_parameters': {
        'rope_type': 'default', 'rope_theta': 1e4, 'partial_rotary_factor': 0.25}}),
    'neox_in_series': ('gpt_neox', WHOLE | SIX | {
        'hidden_size': 48, 'use_parallel_residual': False, 'attention_bias': False,
        'rope_parameters': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1e4, 'partial_rotary_factor': 0.5},
    }),
    'olmo2': ('olmo2', SMALL | SIX | {'num_key_value_heads': 2, 'attention_bias': True}),
    'olmo3': ('olmo3', SMALL | SIX | {
        'num_hidden_layers': 5, 'num_key_value_heads': 2, 'sliding_window': 4,
        'rope_parameters': {
            'full_attention': YARN | {'rope_theta': 5e5, 'attention_factor': 1.2},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 5e5},
        },
    }),
    'phi3': ('phi3', SMALL | SIX | {
        'num_key_value_heads': 3, 'hidden_size': 48, 'sliding_window': 7,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4, 'partial_rotary_factor': 0.75},
    }),
    'yarn': ('qwen2', WHOLE | {'num_key_value_heads': 1, 'rope_parameters': YARN}),
    'yarn_scaled': ('llama', SMALL | SIX | {
        'num_key_value_heads': 6, 'max_position_embeddings': 96, 'rope_parameters': YARN | {
            'original_max_position_embeddings': 24, 'beta_fast': 4.0, 'beta_slow': 0.5, 'truncate': False,
            'mscale': 1.0, 'mscale_all_dim': 0.4,
        },
    }),
    'longrope': ('phi3', SMALL | SIX | {
        'num_key_value_heads': 3, 'hidden_size': 48, 'sliding_window': 7, 'original_max_position_embeddings': 32,
        'rope_parameters': {
            'rope_type': 'longrope', 'rope_theta': 1e4, 'partial_rotary_factor': 0.75, 'short_factor': [1.0, 1.3, 2.5],
            'long_factor': [1.0, 4.0, 9.0],
        },
    }),
    'dynamic': ('llama', SMALL | SIX | {
        'num_key_value_heads': 6, 'rope_parameters': {'rope_type': 'dynamic', 'factor': 4.0},
    }),
    # Experts that no small mesh divides, and that one divides; torch's products by groups want multiples of 16 bytes.
    'mixtral': ('mixtral', SMALL | SIX | {
        'num_key_value_heads': 2, 'num_local_experts': 5, 'num_experts_per_tok': 2, 'sliding_window': 5,
        'hidden_size': 44, 'intermediate_size': 28,
    }),
    'olmoe': ('olmoe', WHOLE | SIX | {
        'hidden_size': 48, 'intermediate_size': 28, 'num_key_value_heads': 2, 'num_experts': 4,
        'num_experts_per_tok': 3, 'norm_topk_prob': False,
    }),
    'qwen3_moe': ('qwen3_moe', SMALL | {
        'num_experts': 8, 'num_experts_per_tok': 3, 'norm_topk_prob': True, 'moe_intermediate_size': 12,
        'hidden_size': 44,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6},
    }),
    'smollm3': ('smollm3', SMALL | {
        'num_hidden_layers': 5, 'use_sliding_window': True, 'sliding_window': 6, 'mlp_bias': True,
    }),
}  # fmt: skip


def golden(case: str) -> dict:
    """What transformers said: `config`, `shapes` ('{}' is the layer), and `logits`, (rows, positions, tokens)."""
    return json.loads((GOLDEN / f'{case}.json').read_text(encoding='utf-8'))


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """`(token_BT, valid_BT)`, the second row shorter; what stands in the padding must not matter."""
    token_BT = np.random.default_rng(7).integers(3, SMALL['vocab_size'], (2, LENGTH))
    return token_BT, np.arange(LENGTH)[None] < np.array([[LENGTH], [SHORT]])


def weight(name: str, shape: list[int], seed: str = '') -> np.ndarray:
    """A tensor that depends on nothing but its name: norms near 1, biases, and matrices that keep their input's size."""
    x = np.random.default_rng(zlib.crc32((name + seed).encode())).standard_normal(shape)
    if 'norm' in name and 'bias' not in name:
        return (1 + 0.3 * x).astype(np.float32)
    return (x * (0.3 if len(shape) == 1 else 2.0 * shape[-1] ** -0.5)).astype(np.float32)


def write(folder: Path, config: dict, shapes: dict[str, list[int]], seed: str = '') -> Path:
    """A checkpoint as transformers writes one, without a tokenizer."""
    folder.mkdir()
    experts = config.get('num_experts') or config.get('num_local_experts') or 0
    (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    names = {
        name.format(*index): shape
        for name, shape in shapes.items()
        for index in itertools.product(*map(range, (config['num_hidden_layers'], experts)[: name.count('{}')]))
    }
    stored = {name: weight(name, shape, seed) for name, shape in names.items()}
    safetensors.numpy.save_file(stored, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder
