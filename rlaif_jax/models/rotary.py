"""How config.json says rotary positions: one fact in several places, in the words of any version of transformers, stretched
or not, the same in all layers or not.
"""

from __future__ import annotations

import math

from rlaif_jax import log
from rlaif_jax.config import Mistake
from rlaif_jax.models.fields import Fields, Raw, Trait, cycle
from rlaif_jax.models.transformer import Config, Rope

USUAL = {  # words of some files
    'type': 'rope_type', 'rotary_emb_base': 'rope_theta', 'rope_local_base_freq': 'rope_theta',
    'rotary_pct': 'partial_rotary_factor',
}  # fmt: skip


NUMBERED = {
    'rope_theta', 'partial_rotary_factor', 'factor', 'low_freq_factor', 'high_freq_factor',
    'original_max_position_embeddings', 'attention_factor', 'beta_fast', 'beta_slow', 'mscale', 'mscale_all_dim',
}  # fmt: skip
KINDS = {'su': 'longrope'} | {kind: kind for kind in ('default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope')}
FAST, SLOW = 32.0, 1.0  # turns, where YaRN's files do not say them
LENGTH = 'original_max_position_embeddings'  # that the model was made with, before it was stretched


def _rotary(f: Fields, theta: float, fraction: float | None, max_length: int, *tables: tuple[str, Raw]) -> Rope:
    """What several tables of rotary parameters, each with the name that it has in the file, say together in the words of
    any version of transformers; where two contradict each other, a `Mistake` names both. `theta` and `fraction` are
    what holds where none says it; without a fraction the family turns whole heads.
    """
    raw, names = {}, {}
    for where, table in tables:
        for word, value in table.items():
            usual, name = USUAL.get(word, word), f'{where}.{word}'.lstrip('.')
            if value is None:
                continue
            if usual == 'rope_type':
                if not isinstance(value, str) or value not in KINDS:
                    raise f.unsupported(f'{where}: rope_type', value, ', '.join(KINDS))
                value = KINDS[value]
            if usual in raw and raw[usual] != value:
                raise Mistake(f'{f.where}: {names[usual]} = {raw[usual]!r}, but {name} = {value!r}; say it once')
            raw[usual], names[usual] = value, name
            if usual in NUMBERED:
                f.positive(name, value)
    kind, more = raw.pop('rope_type', 'default'), {}
    part, theta = raw.pop('partial_rotary_factor', 1.0 if fraction is None else fraction), raw.pop('rope_theta', theta)
    if fraction is None and part != 1:
        raise f.unsupported('partial_rotary_factor', part, '1')
    if kind in ('linear', 'dynamic', 'llama3'):
        more['factor'] = float(raw.pop('factor'))
    if kind in ('llama3', 'yarn', 'longrope'):
        beside = f.take(LENGTH, None)
        length = int(raw.pop(LENGTH, None) or (f.positive(LENGTH, beside) if beside else max_length))
        if kind == 'llama3':
            more['spared'] = float(raw.pop('low_freq_factor')), float(raw.pop('high_freq_factor')), length
        else:
            more = (_yarn if kind == 'yarn' else _longrope)(f, raw, length, max_length)
    if kind == 'dynamic':  # which turns no slower in texts of up to max_length
        more = {'beyond': (('rope_type', kind), ('factor', more['factor']))}
    for word, value in raw.items():
        f.unknown(names[word], value)
    return Rope(float(theta), float(part), **more)


def _yarn(f: Fields, raw: Raw, length: int, max_length: int) -> Raw:
    """YaRN (arXiv 2309.00071)."""
    factor = float(raw.pop('factor', max_length / length))
    grown = lambda by: 0.1 * by * math.log(max(factor, 1.0)) + 1.0  # noqa: E731
    one, other, scale = (raw.pop(name, None) for name in ('mscale', 'mscale_all_dim', 'attention_factor'))
    if scale is None:
        scale = grown(one) / grown(other) if one and other else grown(1.0)
    fast, slow, whole = raw.pop('beta_fast', FAST), raw.pop('beta_slow', SLOW), raw.pop('truncate', True)
    if type(whole) is not bool:
        raise f.unsupported('truncate', whole, 'true, false')
    return {'factor': factor, 'ramp': (float(fast), float(slow), length, whole), 'scale': float(scale)}


def _longrope(f: Fields, raw: Raw, length: int, max_length: int) -> Raw:
    """LongRoPE (arXiv 2402.13753), for texts as long as the model was made with; in longer ones all turns otherwise."""
    each = [raw.pop(name) for name in ('short_factor', 'long_factor')]
    for name, found in zip(('short_factor', 'long_factor'), each):
        if not isinstance(found, list) or not found:
            raise f.unsupported(name, found, 'a list of numbers')
    short, long = (tuple(f.positive('short_factor, long_factor', one) for one in found) for found in each)
    beyond = {LENGTH: length, 'long_factor': long, 'max_position_embeddings': max_length}
    beyond |= {'factor': float(raw.pop('factor'))} if 'factor' in raw else {}
    scale = raw.pop('attention_factor', None) or _longrope_scale(beyond)
    return {'each': short, 'scale': float(scale), 'beyond': tuple(beyond.items())}


def _longrope_scale(said: Raw) -> float:
    """What LongRoPE's attention is scaled by where its files do not say it."""
    length, factor = said[LENGTH], said.get('factor', said['max_position_embeddings'] / said[LENGTH])
    return math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0


def _lengths(f: Fields, max_length: int, rope: Rope) -> Raw:
    """The rope, and the longest text that it is for."""
    length = min(dict(rope.beyond).get(LENGTH, max_length), max_length)
    if length < max_length:
        log.say_once(
            f'{f.where}: is read for texts of up to {length} tokens; in longer ones all positions turn otherwise'
        )
    return {'ropes': (rope,), 'max_length': length}


def _tables(f: Fields) -> list[tuple[str, Raw]]:
    """The tables of rotary parameters: today's, and that of transformers before version 5."""
    tables = [(name, f.take(name, None) or {}) for name in ('rope_parameters', 'rope_scaling')]
    if wrong := [(name, table) for name, table in tables if not isinstance(table, dict)]:
        raise f.unsupported(*wrong[0], 'a table')
    return tables


def _scaling(rope: Rope, max_length: int) -> Raw:
    """The words that every version of transformers reads."""
    beyond = dict(rope.beyond)
    if rope.each:
        usual, top = _longrope_scale(beyond), {name: beyond.pop(name) for name in (LENGTH, 'max_position_embeddings')}
        table = {'type': 'longrope', 'short_factor': rope.each} | beyond
        table |= {} if rope.scale == usual else {'attention_factor': rope.scale}
        return {'rope_scaling': {word: list(x) if isinstance(x, tuple) else x for word, x in table.items()}} | top
    if beyond:
        return {'rope_scaling': beyond}
    if rope.ramp:
        fast, slow, length, whole = rope.ramp
        table = {'rope_type': 'yarn', 'factor': rope.factor, 'attention_factor': rope.scale}
        table |= {'beta_fast': fast, 'beta_slow': slow} | ({} if whole else {'truncate': False})
        return {'rope_scaling': table | ({} if length == max_length else {LENGTH: length})}
    if rope.spared:
        low, high, length = rope.spared
        more = {'low_freq_factor': low, 'high_freq_factor': high, 'original_max_position_embeddings': length}
        return {'rope_scaling': {'rope_type': 'llama3', 'factor': rope.factor} | more}
    return {'rope_scaling': {'rope_type': 'linear', 'factor': rope.factor}} if rope.factor != 1 else {}


def one_rope(theta: float = 10_000.0, base: str = 'rope_theta', part: str = '', fraction: float | None = None) -> Trait:
    """The same in all layers. `base` and `part` are where a config.json says theta and the fraction of a head that turns;
    `fraction` is the family's default, of a family that has one.
    """

    def read(f: Fields, known: Raw) -> Raw:
        words = [base, 'rope_theta', *([part, 'partial_rotary_factor'] if part else [])]
        by_themselves = {word: f.take(word, None) for word in words}  # in words of the family's own, and the usual
        found = _rotary(f, theta, fraction, known['max_length'], *_tables(f), ('', by_themselves))
        return _lengths(f, known['max_length'], found)

    def write(cfg: Config) -> Raw:
        rope = next((rope for rope in cfg.each(cfg.ropes) if rope.factor < math.inf), cfg.ropes[0])
        return {base: rope.theta} | ({part: rope.fraction} if part else {}) | _scaling(rope, cfg.max_length)

    return Trait(read, write)


def _still_read(f: Fields, known: Raw) -> Raw:
    """SmolLM 3, whose every fourth layer knows no positions."""
    every, (rope,) = f.whole('no_rope_layer_interval', f.take('no_rope_layer_interval', 4)), known['ropes']
    turns = f.take('no_rope_layers', None) or [(i + 1) % every for i in range(known['layers'])]
    if not isinstance(turns, list) or len(turns) < known['layers']:
        raise f.unsupported('no_rope_layers', turns, f'one number for each of {known["layers"]} layers')
    still = Rope(rope.theta, rope.fraction, math.inf)
    return {'ropes': cycle([rope if turn else still for turn in turns[: known['layers']]])}


def _still_write(cfg: Config) -> Raw:
    return {
        'no_rope_layers': [int(rope.factor < math.inf) for rope in cfg.each(cfg.ropes)],
        'no_rope_layer_interval': 4,
    }


STILL = Trait(_still_read, _still_write)


def two_ropes(far_theta: float, near_theta: float, near_base: str) -> Trait:
    """Gemma 3 and OLMo 3: layers with a window, which are read already, have rotary positions of their own, and stretched
    are those of the others alone. `near_base` is where a config.json says their theta.
    """

    def read(f: Fields, known: Raw) -> Raw:
        (name, new), old = _tables(f)
        for unknown in set(new) - {'full_attention', 'sliding_attention'}:
            f.unknown(f'{name}.{unknown}', new[unknown])

        def rope(theta: float, kind: str, base: str, *more: tuple[str, Raw]) -> Rope:
            within = (f'{name}.{kind}', new.get(kind) or {})
            return _rotary(f, theta, None, known['max_length'], within, *more, ('', {base: f.take(base, None)}))

        far = rope(far_theta, 'full_attention', 'rope_theta', old)
        near = rope(near_theta, 'sliding_attention', near_base)
        windows = [known['windows'][i % len(known['windows'])] for i in range(known['layers'])]
        return {'ropes': cycle([near if window else far for window in windows])}

    def write(cfg: Config) -> Raw:
        kinds = dict(zip(map(bool, cfg.each(cfg.windows)), cfg.each(cfg.ropes)))
        far, near = kinds.get(False, Rope(far_theta)), kinds.get(True, Rope(near_theta))
        bases, scaling = {'rope_theta': far.theta, near_base: near.theta}, _scaling(far, cfg.max_length)
        if near_base != 'rope_theta' or (far.theta, near.theta) == (far_theta, near_theta):
            return bases | scaling
        # transformers 5 takes a common theta for that of `far` alone, and those before know no other.
        tables = {
            'full_attention': scaling.get('rope_scaling', {'rope_type': 'default'}) | {'rope_theta': far.theta},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': near.theta},
        }
        return {'rope_parameters': tables} | (bases | scaling if far.theta == near.theta else {})

    return Trait(read, write)
