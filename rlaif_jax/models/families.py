"""How Hugging Face files say each family of models: `config.json` and the names of tensors, both ways.

    cfg = read(raw, where='config.json')     # a config.json as our `Config`
    raw = write(cfg, score=False)            # and back: read(write(cfg)) == cfg, or a `Mistake`
    slots = slots_of(cfg)                    # where each parameter lies in the files

A family is a row of `FAMILIES`: where its parameters lie, what all its models have in common, and its `Trait`s, of which
each reads and writes what takes more than another name (`fields.py`; rotary positions in `rotary.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rlaif_jax.config import MOST, Mistake
from rlaif_jax.models.fields import Fields, Raw, Trait, cycle, flag, optional, unused
from rlaif_jax.models.rotary import STILL, one_rope, two_ropes
from rlaif_jax.models.transformer import Config

MANY = 10_000  # layers: more than any model has, and few enough to be listed
# theirs -> ours, taken as they are
NUMBERS = {
    'vocab_size': 'vocab', 'num_hidden_layers': 'layers', 'hidden_size': 'width', 'num_attention_heads': 'heads',
    'num_key_value_heads': 'kv_heads', 'head_dim': 'head_dim', 'intermediate_size': 'ffn',
    'max_position_embeddings': 'max_length', 'rms_norm_eps': 'norm_eps', 'tie_word_embeddings': 'tied',
}  # fmt: skip
DEFAULTS: Raw = {
    'max_position_embeddings': 2048, 'rms_norm_eps': 1e-6, 'layer_norm_eps': 1e-5, 'tie_word_embeddings': False,
    'num_key_value_heads': None, 'head_dim': None,
}  # fmt: skip


class Slot(NamedTuple):
    """Where a parameter lies in their files.

    name: of a tensor; '{}' is the layer, which they store apart, and a second one the expert.
    layout: the letters of its axes, grouped as they are flattened: 'NH D'. Where one tensor holds several parameters,
    `part` says which this is: of those one behind another along the first axis ('NH+KH+KH D'), or of those stacked at
    the digit ('N3H D').
    """

    name: str
    layout: str
    part: int = 0

    @property
    def apart(self) -> str:
        """Of which axes, the first ones of the parameter, each index is a tensor of its own: '', 'L' or 'LE'."""
        return 'LE'[: self.name.count('{}')]

    def names(self, spans: Mapping[str, Sequence[int]]) -> list[str]:
        """Of the tensors within these spans of `apart`, the last one changing fastest."""
        return [self.name.format(*index) for index in itertools.product(*(spans[c] for c in self.apart))]


class Family(NamedTuple):
    classes: tuple[str, str]  # of transformers: a language model, and one with a score for a head
    slots: Mapping[str, Slot]
    traits: tuple[Trait, ...]
    common: Raw = {}  # fields of our `Config` that all models of the family share
    rename: Mapping[str, str | None] = {}  # of NUMBERS, what is called otherwise here; None: not said
    defaults: Raw = {}
    ignored: tuple[str, ...] = ('rotary_emb.inv_freq',)  # endings of tensors that hold no parameters


class Part(NamedTuple):
    """The text part of a model of images and text, which is a language model of a family."""

    family: str
    kind: str  # its own model_type
    defaults: Raw = {}  # fields of theirs that files leave out
    theta: float | None = None  # of rotary positions, where the files do not say it and it is not the family's


def read(raw: Raw, where: str, dtype: str = 'float32') -> Config:
    """`config.json` as our `Config`. An unknown field, or a known one at a value that we do not compute, is a `Mistake`
    that names it. Of a model of images and text it is that of its text part.
    """
    raw, where = _text_part(raw, where)
    kind = raw.get('model_type')
    if not isinstance(kind, str) or kind not in FAMILIES:
        near = difflib.get_close_matches(str(kind), FAMILIES, 3, 0.65)
        hint = f'; nearest: {", ".join(near)}' if near else ''
        known = ', '.join([*FAMILIES, *PARTS])
        raise Mistake(f'{where}: model_type = {kind!r} is not supported{hint}; supported: {known}')
    family, fields = FAMILIES[kind], Fields(raw, where)
    defaults = DEFAULTS | family.defaults
    ours = {'family': kind, 'dtype': dtype} | family.common
    for theirs, mine in _numbers(family):
        value = fields.take(theirs, None)
        value = defaults.get(theirs) if value is None else value
        if value is None and theirs not in defaults:
            raise Mistake(f'{where}: field {theirs!r} is missing')
        if mine == 'tied' and type(value) is not bool:
            raise Mistake(f'{where}: {theirs} = {value!r} is no bool')
        elif mine == 'norm_eps' and value != 0:
            fields.positive(theirs, value)
        elif mine in ('kv_heads', 'head_dim') and value in (None, 0):
            value = None
        elif mine not in ('tied', 'norm_eps'):
            fields.whole(theirs, value, MANY if mine == 'layers' else MOST)
        ours[mine] = value
    ours['kv_heads'] = ours.get('kv_heads') or ours['heads']
    ours['head_dim'] = ours.get('head_dim') or ours['width'] // ours['heads']
    try:
        for trait in family.traits:
            ours |= trait.read(fields, ours)
        fields.finish()
        return Config(**ours)
    except Mistake:
        raise
    except KeyError as error:
        raise Mistake(f'{where}: field {error} is missing') from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise Mistake(f'{where}: {error}') from None


def write(cfg: Config, *, score: bool = False) -> Raw:
    """Our `Config` as the `config.json` of its family; with `score`, of a reward model. What the family's config.json
    cannot say is a `Mistake` that names it.
    """
    family = of(cfg)
    raw: Raw = {'architectures': [family.classes[score]], 'model_type': cfg.family}
    raw |= {theirs: getattr(cfg, mine) for theirs, mine in _numbers(family)}
    for trait in family.traits:
        raw |= trait.write(cfg)
    raw |= {'id2label': {'0': 'score'}, 'label2id': {'score': 0}} if score else {}
    back = read(raw, f'a config.json of {cfg.family}', cfg.dtype)
    for field in dataclasses.fields(Config):
        here, there = getattr(cfg, field.name), getattr(back, field.name)
        if field.name in ('ropes', 'windows'):
            here, there = cfg.each(here), back.each(there)
        if here != there and field.name != 'remat':
            raise Mistake(f'the files of {cfg.family} cannot say {field.name} = {here!r}')
    return raw


def of(cfg: Config) -> Family:
    if cfg.family not in FAMILIES:
        raise Mistake(f'family = {cfg.family!r} is not known; known: {", ".join(FAMILIES)}')
    return FAMILIES[cfg.family]


def slots_of(cfg: Config) -> dict[str, Slot]:
    """Where each parameter of this config lies, as far as the family has a place for it."""
    slots = of(cfg).slots
    return {name: slots[name] for name in cfg.names if name in slots}


def part_of(raw: Raw) -> Part | None:
    """The text part of a model of images and text, as far as it is known; None of a language model."""
    kind = raw.get('model_type')
    return PARTS.get(kind) if isinstance(kind, str) else None


def _text_part(raw: Raw, where: str) -> tuple[Raw, str]:
    """What a config.json says of a language model, and where; fields beside it that nobody knows are an error, too."""
    part = part_of(raw)
    if part is None:
        return raw, where
    top = Fields(raw, where)
    text, tied = top.take('text_config', None), top.take('tie_word_embeddings', None)
    if not isinstance(text, dict):
        raise top.unsupported('text_config', text, 'a table')
    if (kind := text.get('model_type', part.kind)) != part.kind:
        raise top.unsupported('text_config.model_type', kind, part.kind)
    for name in IMAGES:
        top.take(name, None)
    top.finish()
    text = {**part.defaults, **text, 'model_type': part.family}
    text |= {} if tied is None else {'tie_word_embeddings': tied}
    tables = {
        name: dict(text[name]) for name in ('rope_parameters', 'rope_scaling') if isinstance(text.get(name), dict)
    }
    for table in tables.values():
        for word in SPACE:
            table.pop(word, None)
    if part.theta and not any('rope_theta' in table for table in (text, *tables.values())):
        text['rope_theta'] = part.theta
    return text | tables, f'{where}: text_config'


def _numbers(family: Family) -> list[tuple[str, str]]:
    named = [(family.rename.get(theirs, theirs), mine) for theirs, mine in NUMBERS.items()]
    return [(theirs, mine) for theirs, mine in named if theirs is not None]


# Traits


_ACTIVATIONS = {
    'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh',
    'gelu_fast': 'gelu_tanh',
}  # fmt: skip


def _activation(default: str) -> Trait:
    def read(f: Fields, known: Raw) -> Raw:
        name = f.take('hidden_act', default)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise f.unsupported('hidden_act', name, ', '.join(_ACTIVATIONS))
        return {'activation': _ACTIVATIONS[name]}

    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return Trait(read, lambda cfg: {'hidden_act': names[cfg.activation]})


def _gemma_read(f: Fields, known: Raw) -> Raw:
    # The first files of Gemma say 'gelu' and mean its tanh approximation; where both are given `hidden_activation` counts.
    old, new = f.take('hidden_act', None), f.take('hidden_activation', None)
    name = new or ('gelu_pytorch_tanh' if old in (None, 'gelu') else old)
    if name != 'gelu_pytorch_tanh':
        raise f.unsupported('hidden_activation', name, 'gelu_pytorch_tanh')
    return {'embed_scale': known['width'] ** 0.5}


def _scale_read(f: Fields, known: Raw) -> Raw:
    scalar = f.positive('query_pre_attn_scalar', f.take('query_pre_attn_scalar', 256))
    return {'attention_scale': None if scalar == known['head_dim'] else scalar**-0.5}


def _scale_write(cfg: Config) -> Raw:
    scalar = round(cfg.attention_scale**-2, 6) if cfg.attention_scale else cfg.head_dim
    return {'query_pre_attn_scalar': int(scalar) if scalar == int(scalar) else scalar}


# Windows


def _window(default: int | None, switched: bool = False) -> Trait:
    """The same in all layers; null is none. `switched`: none unless `use_sliding_window` says so."""

    def read(f: Fields, known: Raw) -> Raw:
        window = f.take('sliding_window', default) or 0
        window = window if not switched or f.flag('use_sliding_window', False) else 0
        return {'windows': (window and f.whole('sliding_window', window),)}

    def write(cfg: Config) -> Raw:
        return {'sliding_window': cfg.windows[0] or None} | ({'use_sliding_window': cfg.windowed} if switched else {})

    return Trait(read, write)


def _windows(slides: Callable[[Fields, Raw], list[bool]], switched: bool = False) -> Trait:
    """In the layers that `layer_types` names or, in a file without it, where `slides(fields, known)`. `switched`: nowhere
    unless `use_sliding_window` says so.
    """
    KINDS = ('full_attention', 'sliding_attention')

    def read(f: Fields, known: Raw) -> Raw:
        window, layers = f.take('sliding_window', 4096), known['layers']
        window = window if not switched or f.flag('use_sliding_window', False) else None
        window = window and f.whole('sliding_window', window)
        slide_L = [bool(window) and slide for slide in slides(f, known)]
        types = f.take('layer_types', None) or [KINDS[slide] for slide in slide_L]
        if not isinstance(types, list) or len(types) != layers or any(kind not in KINDS for kind in types):
            raise f.unsupported('layer_types', types, f'{" or ".join(KINDS)}, one for each of {layers} layers')
        if KINDS[1] in types and not window:
            raise f.unsupported('sliding_window', window, 'a number, where layer_types has sliding_attention')
        return {'windows': cycle([window if kind == KINDS[1] else 0 for kind in types])}

    def write(cfg: Config) -> Raw:
        windows = cfg.each(cfg.windows)
        first = next((i for i, window in enumerate(windows) if window), cfg.layers)
        switch = {'use_sliding_window': cfg.windowed, 'max_window_layers': first} if switched else {}
        types = [KINDS[bool(window)] for window in windows]
        return switch | {'sliding_window': max(windows) or (None if switched else 4096), 'layer_types': types}

    return Trait(read, write)


def _late(f: Fields, known: Raw) -> list[bool]:
    first = f.take('max_window_layers', 28)
    first = first if first == 0 else f.whole('max_window_layers', first)
    return [i >= first for i in range(known['layers'])]


def _all_but_every(n: int) -> Callable[[Fields, Raw], list[bool]]:
    def slides(f: Fields, known: Raw) -> list[bool]:
        said = [f.take(name, None) for name in ('sliding_window_pattern', '_sliding_window_pattern')]
        every = f.whole('sliding_window_pattern', said[0] or said[1] or n)
        return [(i + 1) % every != 0 for i in range(known['layers'])]

    return slides


def _where_still(f: Fields, known: Raw) -> list[bool]:
    return [known['ropes'][i % len(known['ropes'])].factor == math.inf for i in range(known['layers'])]


# Experts


def _experts(name: str, *others: str) -> Trait:
    """How many, under that name or one of the others, and how many of them a token passes."""

    def read(f: Fields, known: Raw) -> Raw:
        found = {one: value for one in (name, *others) if (value := f.take(one, None)) is not None}
        if len(set(map(repr, found.values()))) > 1:
            raise Mistake(
                f'{f.where}: {" and ".join(f"{one} = {value!r}" for one, value in found.items())}; say it once'
            )
        experts, chosen = f.whole(name, *found.values() or [None]), f.take('num_experts_per_tok', None)
        for told in ('router_aux_loss_coef', 'router_jitter_noise'):  # of training elsewhere
            f.take(told, None)
        return {'experts': experts, 'chosen': f.whole('num_experts_per_tok', chosen, experts)}

    return Trait(read, lambda cfg: {name: cfg.experts, 'num_experts_per_tok': cfg.chosen})


def _everywhere(f: Fields, known: Raw) -> Raw:
    """Experts in all layers; some models of Qwen may have an MLP of the usual kind in some."""
    for name, usual in (('decoder_sparse_step', (1, None)), ('mlp_only_layers', ([], None))):
        if (value := f.take(name, None)) not in usual:
            raise f.unsupported(name, value, f'{usual[0]!r}: experts in every layer')
    return {}


# Families

LAYER = 'model.layers.{}.'
LLAMA: Mapping[str, Slot] = {
    'embed_VD': Slot('model.embed_tokens.weight', 'V D'),
    'attention_norm_LD': Slot(LAYER + 'input_layernorm.weight', 'D'),
    'query_LDNH': Slot(LAYER + 'self_attn.q_proj.weight', 'NH D'),
    'key_LDKH': Slot(LAYER + 'self_attn.k_proj.weight', 'KH D'),
    'value_LDKH': Slot(LAYER + 'self_attn.v_proj.weight', 'KH D'),
    'out_LNHD': Slot(LAYER + 'self_attn.o_proj.weight', 'D NH'),
    'mlp_norm_LD': Slot(LAYER + 'post_attention_layernorm.weight', 'D'),
    'gate_LDF': Slot(LAYER + 'mlp.gate_proj.weight', 'F D'),
    'up_LDF': Slot(LAYER + 'mlp.up_proj.weight', 'F D'),
    'down_LFD': Slot(LAYER + 'mlp.down_proj.weight', 'D F'),
    'query_bias_LNH': Slot(LAYER + 'self_attn.q_proj.bias', 'NH'),
    'key_bias_LKH': Slot(LAYER + 'self_attn.k_proj.bias', 'KH'),
    'value_bias_LKH': Slot(LAYER + 'self_attn.v_proj.bias', 'KH'),
    'out_bias_LD': Slot(LAYER + 'self_attn.o_proj.bias', 'D'),
    'gate_bias_LF': Slot(LAYER + 'mlp.gate_proj.bias', 'F'),
    'up_bias_LF': Slot(LAYER + 'mlp.up_proj.bias', 'F'),
    'down_bias_LD': Slot(LAYER + 'mlp.down_proj.bias', 'D'),
    'query_norm_LH': Slot(LAYER + 'self_attn.q_norm.weight', 'H'),
    'key_norm_LH': Slot(LAYER + 'self_attn.k_norm.weight', 'H'),
    'query_norm_LNH': Slot(LAYER + 'self_attn.q_norm.weight', 'NH'),
    'key_norm_LKH': Slot(LAYER + 'self_attn.k_norm.weight', 'KH'),
    'final_norm_D': Slot('model.norm.weight', 'D'),
    'unembed_DV': Slot('lm_head.weight', 'V D'),
}
OUT_NORMS = {
    'attention_out_norm_LD': Slot(LAYER + 'post_attention_layernorm.weight', 'D'),
    'mlp_norm_LD': Slot(LAYER + 'pre_feedforward_layernorm.weight', 'D'),
    'mlp_out_norm_LD': Slot(LAYER + 'post_feedforward_layernorm.weight', 'D'),
}


def _slots_of_experts(within: str, gate: str, up: str, down: str) -> Mapping[str, Slot]:
    expert = LAYER + within + '.experts.{}.'
    return {
        'router_LDE': Slot(LAYER + within + '.gate.weight', 'E D'),
        'gate_LEDF': Slot(f'{expert}{gate}.weight', 'F D'),
        'up_LEDF': Slot(f'{expert}{up}.weight', 'F D'),
        'down_LEFD': Slot(f'{expert}{down}.weight', 'D F'),
    }


EXPERTS = _slots_of_experts('mlp', 'gate_proj', 'up_proj', 'down_proj')
PHI3 = {
    'query_LDNH': Slot(LAYER + 'self_attn.qkv_proj.weight', 'NH+KH+KH D', 0),
    'key_LDKH': Slot(LAYER + 'self_attn.qkv_proj.weight', 'NH+KH+KH D', 1),
    'value_LDKH': Slot(LAYER + 'self_attn.qkv_proj.weight', 'NH+KH+KH D', 2),
    'gate_LDF': Slot(LAYER + 'mlp.gate_up_proj.weight', 'F+F D', 0),
    'up_LDF': Slot(LAYER + 'mlp.gate_up_proj.weight', 'F+F D', 1),
}
NEOX_LAYER = 'gpt_neox.layers.{}.'
NEOX: Mapping[str, Slot] = {
    'embed_VD': Slot('gpt_neox.embed_in.weight', 'V D'),
    'attention_norm_LD': Slot(NEOX_LAYER + 'input_layernorm.weight', 'D'),
    'attention_norm_bias_LD': Slot(NEOX_LAYER + 'input_layernorm.bias', 'D'),
    'query_LDNH': Slot(NEOX_LAYER + 'attention.query_key_value.weight', 'N3H D', 0),
    'key_LDKH': Slot(NEOX_LAYER + 'attention.query_key_value.weight', 'K3H D', 1),
    'value_LDKH': Slot(NEOX_LAYER + 'attention.query_key_value.weight', 'K3H D', 2),
    'query_bias_LNH': Slot(NEOX_LAYER + 'attention.query_key_value.bias', 'N3H', 0),
    'key_bias_LKH': Slot(NEOX_LAYER + 'attention.query_key_value.bias', 'K3H', 1),
    'value_bias_LKH': Slot(NEOX_LAYER + 'attention.query_key_value.bias', 'K3H', 2),
    'out_LNHD': Slot(NEOX_LAYER + 'attention.dense.weight', 'D NH'),
    'out_bias_LD': Slot(NEOX_LAYER + 'attention.dense.bias', 'D'),
    'mlp_norm_LD': Slot(NEOX_LAYER + 'post_attention_layernorm.weight', 'D'),
    'mlp_norm_bias_LD': Slot(NEOX_LAYER + 'post_attention_layernorm.bias', 'D'),
    'up_LDF': Slot(NEOX_LAYER + 'mlp.dense_h_to_4h.weight', 'F D'),
    'up_bias_LF': Slot(NEOX_LAYER + 'mlp.dense_h_to_4h.bias', 'F'),
    'down_LFD': Slot(NEOX_LAYER + 'mlp.dense_4h_to_h.weight', 'D F'),
    'down_bias_LD': Slot(NEOX_LAYER + 'mlp.dense_4h_to_h.bias', 'D'),
    'final_norm_D': Slot('gpt_neox.final_layer_norm.weight', 'D'),
    'final_norm_bias_D': Slot('gpt_neox.final_layer_norm.bias', 'D'),
    'unembed_DV': Slot('embed_out.weight', 'V D'),
}

SILU = _activation('silu')
ATTENTION_BIAS = flag('attention_bias', False, 'qkv_bias', 'out_bias')
MLP_BIAS = flag('mlp_bias', False, 'mlp_bias')
MANY_EXPERTS = _experts('num_experts', 'num_local_experts')
EVENED = flag('norm_topk_prob', False, 'shared')
LATE_WINDOWS = _windows(_late, switched=True)
GELU_TANH = Trait(_gemma_read, lambda cfg: dict.fromkeys(('hidden_act', 'hidden_activation'), 'gelu_pytorch_tanh'))
QUERY_SCALE = Trait(_scale_read, _scale_write)
GEMMA = {'activation': 'gelu_tanh', 'norm_offset': 1.0}
GEMMA_DEFAULTS = {'max_position_embeddings': 8192, 'tie_word_embeddings': True, 'head_dim': 256}


def _caps(attention: float | None, final: float | None) -> tuple[Trait, Trait]:
    return (
        optional('attn_logit_softcapping', attention, 'attention_cap'),
        optional('final_logit_softcapping', final, 'logit_cap'),
    )


def _classes(name: str) -> tuple[str, str]:
    return f'{name}ForCausalLM', f'{name}ForSequenceClassification'


FAMILIES: Mapping[str, Family] = {
    'llama': Family(_classes('Llama'), LLAMA, (SILU, one_rope(), ATTENTION_BIAS, MLP_BIAS)),
    'mistral': Family(_classes('Mistral'), LLAMA, (SILU, one_rope(), _window(4096))),
    'qwen2': Family(_classes('Qwen2'), LLAMA, (SILU, one_rope(), LATE_WINDOWS), {'qkv_bias': True}),
    'mixtral': Family(
        _classes('Mixtral'), {**LLAMA, **_slots_of_experts('block_sparse_moe', 'w1', 'w3', 'w2')},
        (SILU, one_rope(1_000_000.0), _window(None), _experts('num_local_experts', 'num_experts')),
        defaults={'max_position_embeddings': 131_072, 'rms_norm_eps': 1e-5},
    ),
    'olmoe': Family(
        _classes('Olmoe'), {**LLAMA, **EXPERTS},
        (SILU, one_rope(), ATTENTION_BIAS, MANY_EXPERTS, EVENED),
        {'qk_norm': 'all'}, defaults={'max_position_embeddings': 4096, 'rms_norm_eps': 1e-5},
    ),
    'qwen3_moe': Family(
        _classes('Qwen3Moe'), {**LLAMA, **EXPERTS},
        (SILU, one_rope(), ATTENTION_BIAS, _window(4096, switched=True), MANY_EXPERTS, EVENED,
         Trait(_everywhere, lambda cfg: {}), unused('intermediate_size', 'max_window_layers')),
        {'qk_norm': 'head'}, rename={'intermediate_size': 'moe_intermediate_size'},
        defaults={'max_position_embeddings': 32_768},
    ),
    'qwen3': Family(
        _classes('Qwen3'), LLAMA, (SILU, one_rope(), ATTENTION_BIAS, LATE_WINDOWS), {'qk_norm': 'head'},
        defaults={'head_dim': 128},
    ),
    'gemma': Family(_classes('Gemma'), LLAMA, (GELU_TANH, one_rope(), ATTENTION_BIAS), GEMMA, defaults=GEMMA_DEFAULTS),
    'gemma2': Family(
        _classes('Gemma2'), {**LLAMA, **OUT_NORMS},
        (GELU_TANH, one_rope(), ATTENTION_BIAS, QUERY_SCALE, *_caps(50.0, 30.0), _windows(_all_but_every(2))),
        GEMMA | {'norm_at': 'around'}, defaults=GEMMA_DEFAULTS,
    ),
    'gemma3_text': Family(
        ('Gemma3ForCausalLM', 'Gemma3TextForSequenceClassification'), {**LLAMA, **OUT_NORMS},
        (GELU_TANH, ATTENTION_BIAS, QUERY_SCALE, *_caps(None, None), _windows(_all_but_every(6)),
         two_ropes(1_000_000.0, 10_000.0, 'rope_local_base_freq')),
        GEMMA | {'norm_at': 'around', 'qk_norm': 'head'}, defaults=GEMMA_DEFAULTS | {'max_position_embeddings': 131_072},
    ),
    'gpt_neox': Family(
        _classes('GPTNeoX'), NEOX,
        (_activation('gelu'), one_rope(base='rotary_emb_base', part='rotary_pct', fraction=0.25),
         flag('attention_bias', True, 'qkv_bias', 'out_bias'), flag('use_parallel_residual', True, 'parallel')),
        {'norm': 'layer', 'gated': False, 'mlp_bias': True},
        rename={'rms_norm_eps': 'layer_norm_eps', 'num_key_value_heads': None, 'head_dim': None},
        ignored=('rotary_emb.inv_freq', 'attention.bias', 'attention.masked_bias'),  # the last two are causal masks
    ),
    'olmo2': Family(
        _classes('Olmo2'), {**LLAMA, **OUT_NORMS}, (SILU, one_rope(), ATTENTION_BIAS),
        {'norm_at': 'after', 'qk_norm': 'all'}, defaults={'rms_norm_eps': 1e-5},
    ),
    'olmo3': Family(
        _classes('Olmo3'), {**LLAMA, **OUT_NORMS},
        (SILU, ATTENTION_BIAS, _windows(_all_but_every(4)), two_ropes(500_000.0, 500_000.0, 'rope_theta')),
        {'norm_at': 'after', 'qk_norm': 'all'}, defaults={'rms_norm_eps': 1e-5},
    ),
    'phi3': Family(
        _classes('Phi3'), {**LLAMA, **PHI3},
        (SILU, one_rope(part='partial_rotary_factor', fraction=1.0), _window(None),
         unused('original_max_position_embeddings')),
        defaults={'rms_norm_eps': 1e-5},
    ),
    'smollm3': Family(
        _classes('SmolLM3'), LLAMA,
        (SILU, one_rope(2_000_000.0), ATTENTION_BIAS, MLP_BIAS, STILL,
         _windows(_where_still, switched=True), unused('max_window_layers')),
        defaults={'tie_word_embeddings': True},
    ),
}  # fmt: skip

PARTS: Mapping[str, Part] = {
    'gemma3': Part('gemma3_text', 'gemma3_text', {
        'vocab_size': 262_208, 'num_attention_heads': 8, 'num_key_value_heads': 4,
    }),
    'mistral3': Part('mistral', 'mistral'),
    'qwen3_vl': Part('qwen3', 'qwen3_vl_text', theta=500_000.0),
}  # fmt: skip
# What files say of images, beside text_config; and, of rotary positions, of where in an image a token stands, which for
# text is the same in all directions.
IMAGES = {
    'vision_config', 'image_token_index', 'image_token_id', 'boi_token_index', 'eoi_token_index', 'boi_token_id',
    'eoi_token_id', 'mm_tokens_per_image', 'projector_hidden_act', 'vision_feature_layer', 'multimodal_projector_bias',
    'spatial_merge_size', 'video_token_id', 'vision_start_token_id', 'vision_end_token_id',
}  # fmt: skip
SPACE = {'mrope_section', 'mrope_interleaved'}
