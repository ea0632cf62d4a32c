"""The fields of a config.json, of which every one has to be taken by somebody: whatever nobody takes is an error that names
it, for it may change the mathematics.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlaif_jax import log
from rlaif_jax.config import MOST, Mistake
from rlaif_jax.models.transformer import Config

Raw = dict[str, Any]  # what config.json holds

# Fields that do not change the mathematics of inference, whatever they hold: what a model is called and was trained with,
# what transformers writes of every model, how to sample, and notes of tools.
HARMLESS = {
    'architectures', 'model_type', 'bos_token_id', 'eos_token_id', 'pad_token_id', 'sep_token_id', 'unk_token_id',
    'dtype', 'torch_dtype', 'transformers_version', 'transformers.js_config', 'initializer_range', 'use_cache',
    'cache_implementation', 'pretraining_tp', 'attention_dropout', 'hidden_dropout', 'classifier_dropout', 'embd_pdrop',
    'resid_pdrop', '_name_or_path', 'id2label', 'label2id', 'auto_map', 'chunk_size_feed_forward', 'is_encoder_decoder',
    'is_decoder', 'output_attentions', 'output_hidden_states', 'problem_type', 'return_dict', 'tokenizer_class',
    'is_llama_config', '_attn_implementation_autoset', 'attn_implementation', '_attn_implementation', '_commit_hash',
    'num_labels', 'torchscript', 'use_bfloat16', 'tf_legacy_loss', 'finetuning_task', 'gradient_checkpointing',
    'tie_encoder_decoder', 'task_specific_params', 'vocab_size_or_config_json_file', 'keys_to_ignore_at_inference',
    'pad_to_multiple_of', 'bos_token', 'eos_token', 'pad_token', 'sep_token', 'unk_token', 'mask_token_id', 'prefix',
    'rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon',  # of the norm that the family does not have
    # sampling
    'max_length', 'min_length', 'max_new_tokens', 'min_new_tokens', 'do_sample', 'early_stopping', 'num_beams',
    'num_beam_groups', 'num_return_sequences', 'diversity_penalty', 'temperature', 'top_k', 'top_p', 'min_p', 'typical_p',
    'repetition_penalty', 'length_penalty', 'no_repeat_ngram_size', 'encoder_no_repeat_ngram_size', 'bad_words_ids',
    'suppress_tokens', 'begin_suppress_tokens', 'forced_bos_token_id', 'forced_eos_token_id', 'decoder_start_token_id',
    'remove_invalid_values', 'exponential_decay_length_penalty', 'return_dict_in_generate', 'output_scores',
    'penalty_alpha',
    # tools
    'model_name', 'base_model_name_or_path', 'license', 'neftune_noise_alpha', 'ignore_index', 'max_sequence_length',
    'use_flash_attn', 'use_flash_attention', 'use_flash_attention_2', 'fused_bias_dropout', 'value_head_prefix',
    'trust_remote_code', 'language', 'tags',
}  # fmt: skip
NOTES = ('unsloth_',)  # beginnings of more of them
# Fields that are fine at some values only, for every family that has no other use for them.
ONLY: Mapping[str, tuple[Any, ...]] = {
    'attention_bias': (False, None),
    'clip_qkv': (None,),
    'mlp_bias': (False, None),
    'partial_rotary_factor': (1, None),
    'rope_interleaved': (False, None),
    'sliding_window': (None,),
    'use_mrope': (False, None),
    'use_bidirectional_attention': (False, None),
    'quantization_config': (None, {}),
    'quantization': (None, {}),
    'pruned_heads': ({}, None),
    'add_cross_attention': (False, None),
    'cross_attention_hidden_size': (None,),
    'output_router_logits': (False, None),
    # A reward model whose scores go out as (score - mean) / std.
    'normalize_reward': (False, None),
    'mean': (0, None),
    'std': (1, None),
}
IGNORED = 'RLAIF_IGNORE_FIELDS'  # names of fields, with commas between, that the user takes on their own account


class Fields:
    """A config.json of which every field has to be taken by somebody."""

    def __init__(self, raw: Raw, where: str) -> None:
        self.raw, self.left, self.where = raw, dict(raw), where

    def take(self, name: str, default: Any) -> Any:
        """The value, or the default where the field is not there at all (null is a value: None)."""
        self.left.pop(name, None)
        return self.raw.get(name, default)

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if value not in (True, False, None):  # a word, which would be true whatever it says
            raise self.unsupported(name, value, 'true, false')
        return bool(value)

    def positive(self, name: str, value: Any) -> float:
        """A number above 0 that a float can hold. Raises `Mistake` for what is none: text, true, infinity."""
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise self.unsupported(name, value, 'a number above 0')
        return float(value)

    def whole(self, name: str, value: Any, most: int = MOST) -> int:
        """A whole number, 1 at least. Raises `Mistake` for what is none, also for 2.0."""
        if type(value) is not int or not 1 <= value <= most:
            raise self.unsupported(name, value, f'a whole number, 1 to {most:,}')
        return value

    def unsupported(self, name: str, value: Any, supported: str) -> Mistake:
        return Mistake(f'{self.where}: {name} = {value!r} is not supported; supported: {supported}')

    def refuse(self, name: str, value: Any, why: str) -> None:
        """Raises `Mistake` for a field, unless the user takes it on their own account."""
        if not name or name not in os.environ.get(IGNORED, '').replace(' ', '').split(','):
            raise Mistake(f'{self.where}: {why}; {IGNORED}={name} in the environment ignores it, on your own account')
        log.say_once(f'{self.where}: {name} = {value!r} is ignored, as {IGNORED} says')

    def unknown(self, name: str, value: Any) -> None:
        self.refuse(name, value, f'unknown field {name!r}; it may change the mathematics, so it is not ignored')

    def finish(self) -> None:
        """Raises `Mistake` for a field that nobody took and that is not known to be harmless."""
        for name, value in self.left.items():
            if name in ('quantization_config', 'quantization') and value not in ONLY[name]:
                how = f'{name} = {value!r} is not supported: it is quantized {_quantized(value)}'
                raise Mistake(f'{self.where}: {how}; fetch the model in bfloat16 or float32')
            if name in ONLY and value not in ONLY[name]:
                self.refuse(name, value, f'{name} = {value!r} is not supported (only {ONLY[name][0]!r})')
            elif name not in HARMLESS | set(ONLY) and not name.startswith(NOTES):
                self.unknown(name, value)


def _quantized(value: Any) -> str:
    """By what, as far as the field says it."""
    known = value if isinstance(value, dict) else {}
    loading = 'bitsandbytes' if any(key.startswith('load_in_') for key in known) else None
    method = known.get('quant_method') or loading or ('MLX' if 'group_size' in known else 'a tool it does not name')
    bits = known.get('bits') or known.get('w_bit')
    return f'by {method}' + f' to {bits} bits' * bool(bits)


class Trait(NamedTuple):
    """`read(fields, known)` gives more fields of our `Config`, of which some are `known` already; `write(cfg)` gives
    theirs.
    """

    read: Callable[[Fields, Raw], Raw]
    write: Callable[[Config], Raw]


# Traits that say one thing


def flag(theirs: str, default: bool, *ours: str) -> Trait:
    """A switch of theirs for one or several of ours, which go together."""

    def read(f: Fields, known: Raw) -> Raw:
        return dict.fromkeys(ours, f.flag(theirs, default))

    return Trait(read, lambda cfg: {theirs: getattr(cfg, ours[0])})


def optional(theirs: str, default: float | None, ours: str) -> Trait:
    """A number of theirs that may be null, as ours may be None."""

    def read(f: Fields, known: Raw) -> Raw:
        value = f.take(theirs, default)
        return {ours: None if value is None else f.positive(theirs, value)}

    return Trait(read, lambda cfg: {theirs: getattr(cfg, ours)})


def unused(*names: str) -> Trait:
    """What a family's files say and nothing that we support depends on."""

    def read(f: Fields, known: Raw) -> Raw:
        for name in names:
            f.take(name, None)
        return {}

    return Trait(read, lambda cfg: {})


def cycle(values: list) -> tuple:
    """The shortest tuple that, repeated, is these values."""
    n = next(n for n in range(1, len(values) + 1) if all(x == values[i % n] for i, x in enumerate(values)))
    return tuple(values[:n])
