"""What the compiler says of a program, for devices that need not be there: memory, and what devices send each other.

    found = compile(program)       Found(need=…, sent={'all-gather': …}, seconds=…)

It is asked once: what it said is kept in the user's cache, by the text of the program, its devices and its version.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import jax

from experiments.programs import Program
from rlaif_jax import log, paths

# Bytes that a device receives, at least, for each byte of the result; g devices take part.
COLLECTIVES = {
    'all-gather': lambda g: (g - 1) / g,
    'all-reduce': lambda g: 2 * (g - 1) / g,
    'reduce-scatter': lambda g: g - 1,  # its result is the g-th part of what it reads
    'all-to-all': lambda g: (g - 1) / g,
    'collective-permute': lambda g: 1,
}
SIZES = {
    'pred': 1,
    's8': 1,
    'u8': 1,
    's16': 2,
    'u16': 2,
    'bf16': 2,
    'f16': 2,
    's32': 4,
    'u32': 4,
    'f32': 4,
    's64': 8,
    'f64': 8,
}
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_COLLECTIVE = re.compile(rf' = (.*?) ({"|".join(COLLECTIVES)})(?:-start)?\(')
_ARRAY = re.compile(r'\b(\w+)\[([\d,]*)\]')
READING = 2  # of a text; another number where another thing is read off it


@dataclass(frozen=True)
class Found:
    """Of a program, on one device."""

    need: int  # bytes of its arguments and all that it makes of them; of one that does not fit as far as the compiler says
    sent: dict[str, float]  # bytes a call, by kind of collective, from or to each device
    seconds: float  # that compiling took
    fits: bool = True  # False: the compiler found no way
    whole: tuple[str, ...] = ()  # arrays that ought to be split, and are whole on a device at some time

    @classmethod
    def estimated(cls, program: Program) -> Found:
        """Where nothing is compiled."""
        return cls(program.arguments + program.working, {}, 0.0)


def compile(program: Program, kind: str) -> Found:
    """Compile a program, or look up what was found before. `kind` tells devices apart that a program's text does not."""
    lowered = program.lower()
    what = f'{READING} {jax.__version__} {compiler()} {kind} '.encode() + lowered.as_text().encode()
    cache = paths.cache()
    file = cache and cache / 'rlaif_jax' / 'compiled' / f'{hashlib.sha256(what).hexdigest()[:24]}.json'
    if file and file.exists():
        try:
            kept = json.loads(file.read_text(encoding='utf-8'))
            return Found(**kept | {'whole': tuple(kept.get('whole', ()))})
        except (ValueError, TypeError):
            pass  # of another version, or cut off: it is found again
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (
            asked := re.search(
                r'RESOURCE_EXHAUSTED.*?\(([\d.]+)([MG])\) exceeds|Used ([\d.]+)([MG]) of', str(error), re.S
            )
        ):
            raise
        size, unit = (asked[1], asked[2]) if asked[1] else (asked[3], asked[4])
        need = int(float(size) * {'M': 2**20, 'G': 2**30}[unit])
        need += program.arguments if asked[1] else 0  # the first message is about what is made of the arguments
        found = Found(need, {}, time.perf_counter() - began, False)
    else:
        of = compiled.memory_analysis()
        made = (
            of.temp_size_in_bytes + of.output_size_in_bytes - of.alias_size_in_bytes + of.generated_code_size_in_bytes
        )
        text = _text(compiled)
        if not text:
            log.say_once(f'{program.name}: its compiled text cannot be read here, so what devices send is not counted')
        seconds, whole = time.perf_counter() - began, gathered(text, program.split)
        found = Found(of.argument_size_in_bytes + made, collectives(text), seconds, whole=whole)
    if file and paths.writable(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(log.to_json(asdict(found)), encoding='utf-8')
    return found


def _text(compiled: jax.stages.Compiled) -> str:
    """The text of a compiled program; '' where the compiler is newer than what reads it."""
    try:
        return compiled.as_text() or ''
    except jax.errors.JaxRuntimeError:
        return ''


def compiler() -> str:
    try:
        import libtpu

        return f'libtpu {libtpu.__version__}'
    except (ImportError, AttributeError):
        return ''


def collectives(text: str) -> dict[str, float]:
    """Bytes that each device receives in a run of a compiled program, by kind of collective, at least.

    What stands in a loop counts as often as it turns. A collective that the compiler splits over several instructions keeps
    its channel, by which it is counted once.
    """
    found: dict[tuple[str, str], float] = {}
    bodies = {name: body for name, body in _computations(text)}
    times = _times(text, bodies)
    for name, body in bodies.items():
        for number, line in enumerate(body):
            if not (match := _COLLECTIVE.search(line)):
                continue
            kind = 'reduce-scatter' if name.startswith('all-reduce-scatter') and match[2] == 'all-reduce' else match[2]
            sizes = [_bytes(*array) for array in _ARRAY.findall(match[1])]
            size = max(sizes, default=0) if '-start(' in line or len(sizes) == 1 else sum(sizes)
            if kind == 'reduce-scatter' and match[2] == 'all-reduce':
                size /= _group(line)
            channel = re.search(r'channel_id=(\d+)', line)
            key = kind, channel[1] if channel else f'{name} {number}'
            amount = times.get(name, 0.0) * size * COLLECTIVES[kind](_group(line))
            found[key] = max(found.get(key, 0.0), amount)
    out: dict[str, float] = {}
    for (kind, _), amount in found.items():
        out[kind] = out.get(kind, 0.0) + amount
    return {kind: amount for kind, amount in sorted(out.items()) if amount}


def gathered(text: str, split: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Of arrays by name, with their shapes, those that are whole somewhere in a compiled program: an array that has their
    first axis, that of layers, and the others in any order, some of them together. As many numbers alone say nothing: a
    layer of one matrix may have those of all layers of another, and so may a cache.
    """
    shapes = {tuple(int(n) for n in shape.split(',') if n != '1') for _, shape in set(_ARRAY.findall(text)) if shape}

    def there(first: int, *others: int) -> bool:
        wanted = math.prod(others)
        found = (shape for shape in shapes if math.prod(shape) == first * wanted and (first in shape or first == 1))
        return any(_made_of(_without(shape, first), others) for shape in found)

    return tuple(name for name, shape in split.items() if there(*shape))


def _made_of(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Each axis of a shape is the product of some of `axes`, of which none is used twice."""
    if not shape:
        return True
    some = (each for count in range(1, len(axes) + 1) for each in itertools.combinations(range(len(axes)), count))
    return any(
        _made_of(shape[1:], tuple(n for i, n in enumerate(axes) if i not in each))
        for each in some
        if math.prod(axes[i] for i in each) == shape[0]
    )


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    at = shape.index(axis) if axis in shape else len(shape)
    return shape[:at] + shape[at + 1 :]


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, body = '', []
    for line in text.splitlines():
        if (
            line
            and not line[0].isspace()
            and line.endswith('{')
            and (match := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(', line))
        ):
            name, body = match[1], []
        elif line.startswith('}') and name:
            yield name, body
            name = ''
        elif name:
            body.append(line)


def _times(text: str, bodies: dict[str, list[str]]) -> dict[str, float]:
    """How often each computation runs."""
    entry = re.search(r'^ENTRY %?([\w.\-]+)', text, re.M)
    times: dict[str, float] = {}

    def visit(name: str, count: float) -> None:
        times[name] = times.get(name, 0.0) + count
        for line in bodies.get(name, ()):
            called = _CALLED.findall(line) + [
                one.strip().lstrip('%') for found in _BRANCHES.findall(line) for one in found.split(',')
            ]
            turns = _turns(bodies, line) if ' while(' in line else 1
            for one in called:
                if one in bodies:
                    visit(one, count * turns)

    if entry:
        visit(entry[1], 1.0)
    return times


def _turns(bodies: dict[str, list[str]], line: str) -> int:
    """How often a loop turns, at most: what its counter is compared with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r'condition=%?([\w.\-]+)', line)
    numbers = [
        int(number)
        for inner in bodies.get(condition[1] if condition else '', ())
        for number in re.findall(r'[su]32\[\]\S* constant\((\d+)\)', inner)
    ]
    return max(numbers, default=1) or 1


def _group(line: str) -> int:
    """How many devices take part."""
    if named := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line):
        sizes = dict(re.findall(r"'([\w.\-]+)'=(\d+)", named[1]))
        return math.prod(int(sizes.get(name, 1)) for name in re.findall(r"'([\w.\-]+)'", named[2]))
    if several := re.search(r'replica_groups=\[(\d+),(\d+)\]', line):
        return int(several[2])
    if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
        return listed[1].count(',') + 1
    return 2


def _bytes(kind: str, shape: str) -> int:
    return SIZES.get(kind, 0) * math.prod(int(size) for size in shape.split(',') if size)
