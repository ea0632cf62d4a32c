"""Laws of configs: text and configs turn into each other without loss, and every mistake names the nearest right thing."""

from __future__ import annotations

import dataclasses
import math
import random
import re
import shlex
from collections.abc import Callable
from typing import Literal, Optional

import numpy as np
import pytest

from rlaif_jax.config import (
    SAME,
    Mistake,
    bind,
    differences,
    digest,
    dump,
    help_text,
    literal,
    over,
    parse,
    parse_binding,
    product,
    same,
    zipped,
)
from rlaif_jax.training import reinforce


@dataclasses.dataclass(frozen=True)
class Optimizer:
    name: Literal['adafactor', 'adamw'] = 'adafactor'
    learning_rate: float = 1e-05
    clip: Optional[float] = None  # noqa: UP045 (the old spelling must work too)


@dataclasses.dataclass(frozen=True)
class Value:
    width: int
    trunk: Literal['own', 'shared'] = 'own'


@dataclasses.dataclass(frozen=True)
class Reinforce:
    optimizer: Optimizer = Optimizer()
    beta: float = 0.05
    batch_size: int = 8
    value: Value | None = None
    shots: Literal[0, 1, 2, 8] = 0

    def __post_init__(self):
        if self.batch_size <= 0:
            raise ValueError(f'batch_size must be positive, got {self.batch_size}')


@dataclasses.dataclass(frozen=True)
class Run:
    name: str = 'run'
    note: str | None = None
    whiten: bool = True
    verbosity: Literal['low', 'high'] | None = None
    layers: tuple[int, ...] = (1, 2)
    span: tuple[float, str] = (0.0, 'a')
    mixed: tuple[tuple[int | None, ...], ...] = ()
    either: int | float = 1
    mesh: dict[str, int] = dataclasses.field(default_factory=dict)
    reinforce: Reinforce = Reinforce()
    steps: int = dataclasses.field(init=False, default=7)  # not the user's to bind

    def __post_init__(self):
        if self.name == 'bad' and self.reinforce.beta > 1:
            raise Mistake('name and beta do not go together')


WILD = [
    Run(),
    Run(name='', note='it\'s "quoted" # no comment = no\nbinding\t\\ \u2028 é'),
    Run(name='inf', note='None', whiten=False, verbosity='high', layers=(), span=(-math.inf, ']')),
    Run(mixed=((1, None), (), (None,)), either=0.5, mesh={'data': 4, 'model': 2}),
    Run(reinforce=Reinforce(Optimizer('adamw', 5e-324, 1e300), beta=math.inf, value=Value(3, 'shared'), shots=8)),
]


def message(function, *args) -> str:
    with pytest.raises(Mistake) as error:
        function(*args)
    return str(error.value)


# Text


@pytest.mark.parametrize('typed, meant', [('two words', '…'), ('[adamw]', ['…'])])
def test_text_that_wants_quotes_is_shown_with_those_of_a_shell(typed, meant):
    with pytest.raises(Mistake) as caught:
        parse_binding(f'a.b={typed}')
    *_, hint = shlex.split(str(caught.value))
    assert parse_binding(hint) == ('a.b', meant)


def test_parse_reads_literals_comments_and_bare_words():
    text = """
    # a comment
    a = 1                    # trailing
    a.b = 1e-5
    a.c = 'a # in a string'  # and out of it
    a.d = "don't"
    a.e = [1,   # one
           2,   # ] no end
           ']',
          ]
    a.f = (True, None, {'x': -inf})
    a.g=adamw
    a.h = google/gemma-2-2b   # bare
    a.i = gs://bucket/x_1.0
    a.j = inf
    a.k = ''
    a.l = 1_000
    """
    assert parse(text) == {
        'a': 1, 'a.b': 1e-5, 'a.c': 'a # in a string', 'a.d': "don't", 'a.e': [1, 2, ']'],
        'a.f': (True, None, {'x': -math.inf}), 'a.g': 'adamw', 'a.h': 'google/gemma-2-2b', 'a.i': 'gs://bucket/x_1.0',
        'a.j': math.inf, 'a.k': '', 'a.l': 1000,
    }  # fmt: skip
    assert math.isnan(parse('x = nan')['x'])
    assert parse('a = ~/données_猫.jsonl') == {'a': '~/données_猫.jsonl'}
    assert parse('') == parse('\n\n# only\n') == {}
    assert parse('a = 1\r\nb = x\r\n') == {'a': 1, 'b': 'x'}


@pytest.mark.parametrize(
    ('text', 'value'),
    [('a.b=adamw', 'adamw'), (' a.b = 3 ', 3), ('a.b=true', 'true'), ('a.b=True', True), ('a.b="x=y#z"', 'x=y#z')],
)
def test_parse_binding(text, value):
    assert parse_binding(text) == ('a.b', value)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('a = 1\n\nb 2', ['x.gin:3', "'b 2'", 'path.to.field = value']),
        ('a = 1\nb = 2\na = 3', ['x.gin:3: a ', 'line 1']),
        ('\na.b = two words', ['x.gin:2', 'a.b', 'two words', 'quotes']),
        ('a.b =', ['x.gin:1', 'no value', 'a.b="…"']),
        ('a = 1\nb = [1,\n 2\nc = 3', ['x.gin:2', 'bracket']),
        ('a = [1, adamw]', ['x.gin:1', '[1, adamw]', 'quotes']),
        ('a = "open', ['x.gin:1', 'quotes']),
        ('a = 1]', ['x.gin:1', '1]']),
        ('a = {[]: 1}', ['x.gin:1']),
        ("a = __import__('os')", ['x.gin:1']),
    ],
)
def test_bad_syntax_names_file_and_line(text, words):
    said = message(parse, text, 'x.gin')
    assert all(word in said for word in words), said


def test_bad_syntax_on_the_command_line_says_so():
    assert re.match("command line: 'reinforce.beta' .*path.to.field=value", message(parse_binding, 'reinforce.beta'))


# Bind


def test_bind_returns_a_new_config_and_leaves_the_old_alone():
    old, before = Run(), dump(Run())
    new = bind(old, {'reinforce.optimizer.name': 'adamw', 'layers': [3], 'reinforce.beta': 1, 'mesh': {'data': 2}})
    assert new == Run(layers=(3,), mesh={'data': 2}, reinforce=Reinforce(Optimizer('adamw'), beta=1.0))
    assert type(new.reinforce.beta) is float and type(new.layers) is tuple
    assert dump(old) == before and old == Run()
    assert bind(old, {}) is old
    given = {'data': 1}
    bound = bind(old, {'mesh': given})
    given['data'] = 2
    assert bound.mesh == {'data': 1}


def test_bindings_apply_all_at_once():
    bad = Run(reinforce=Reinforce(beta=2.0))
    assert bind(bad, {'name': 'bad', 'reinforce.beta': 0.5}).name == 'bad'


def test_an_absent_config_is_made_from_its_fields_and_can_go_again():
    made = bind(Run(), {'reinforce.value.width': 4})
    assert made.reinforce.value == Value(4)
    assert bind(made, {'reinforce.value': None}) == Run()
    said = message(bind, Run(), {'reinforce.value.trunk': 'own'})
    assert re.fullmatch(r'reinforce\.value: .*Value .* reinforce\.value\.width', said)
    said = message(bind, Run(), {'reinforce.value': None, 'reinforce.value.width': 4})
    assert re.match(r'reinforce\.value: .* None .* reinforce\.value\.width\b', said)


def test_scalars_of_numpy_become_python_numbers():
    bound = bind(Run(), {'reinforce.beta': np.float64(0.1), 'reinforce.batch_size': np.int64(4)})
    assert bound == Run(reinforce=Reinforce(beta=0.1, batch_size=4)) and 'np.' not in dump(bound)


@pytest.mark.parametrize(
    ('typed', 'nearest'),
    [
        ('reinforce.betta', 'reinforce.beta'),
        ('beta', 'reinforce.beta'),
        ('reinforce.beta.x', 'reinforce.beta'),
        ('learning-rate', 'reinforce.optimizer.learning_rate'),
        ('reinforce.learning_rate', 'reinforce.optimizer.learning_rate'),
        ('--reinforce.batch_size', 'reinforce.batch_size'),
        ('reinforce.value.witdh', 'reinforce.value.width'),
        ('reinforced', 'reinforce'),
        ('steps', 'reinforce.shots'),
    ],
)
def test_an_unknown_path_names_the_nearest_in_the_whole_tree(typed, nearest):
    assert re.fullmatch(rf'{typed}: .* {nearest}\?', message(bind, Run(), {typed: 1}))


def test_a_whole_config_cannot_be_bound():
    for path, value, fields in (
        ('reinforce.optimizer', Optimizer(), ('name', 'learning_rate', 'clip')),
        ('reinforce.value', 3, ('width', 'trunk')),
        ('reinforce', None, ('optimizer', 'beta', 'batch_size', 'value', 'shots')),
    ):
        said = message(bind, Run(), {path: value})
        assert said.startswith(f'{path}: ') and said.endswith(': ' + ', '.join(f'{path}.{field}' for field in fields))


@pytest.mark.parametrize(
    ('path', 'value', 'wanted', 'nearest'),
    [
        ('reinforce.beta', 'high', 'float', ''),
        ('reinforce.beta', True, 'float', ''),
        ('reinforce.beta', 10**400, 'float', ''),
        ('reinforce.batch_size', True, 'int', ''),
        ('reinforce.batch_size', 2.0, 'int', '2'),
        ('reinforce.batch_size', 2.5, 'int', ''),
        ('reinforce.batch_size', None, 'int', ''),
        ('reinforce.optimizer.clip', 'none', 'float | None', 'None'),
        ('reinforce.optimizer.name', 'adamm', "'adafactor' | 'adamw'", "'adamw'"),
        ('reinforce.shots', 3, '0 | 1 | 2 | 8', ''),
        ('reinforce.shots', False, '0 | 1 | 2 | 8', ''),
        ('whiten', 'true', 'True | False', 'True'),
        ('whiten', 1, 'True | False', ''),
        ('name', 3, 'str', "'3'"),
        ('layers', 3, 'tuple[int, ...]', '(3,)'),
        ('layers', (1, 'a'), 'tuple[int, ...]', ''),
        ('span', (1.0,), 'tuple[float, str]', ''),
        ('span', (1.0, 'a', 2), 'tuple[float, str]', ''),
        ('mesh', {'data': 'x'}, 'dict[str, int]', ''),
        ('mesh', 4, 'dict[str, int]', ''),
    ],
)
def test_a_wrong_type_names_path_wanted_got_and_the_nearest(path, value, wanted, nearest):
    said = message(bind, Run(), {path: value})
    assert said.startswith(f'{path}: ') and said.endswith(f' {nearest}?' if nearest else ')')
    assert f' {wanted}, ' in said and f' {value!r} ({type(value).__name__})' in said


def test_a_bad_value_names_the_config_that_refuses_it():
    said = message(bind, Run(), {'reinforce.batch_size': -1})
    assert said == 'reinforce: batch_size must be positive, got -1'
    assert message(bind, Run(), {'name': 'bad', 'reinforce.beta': 2}) == 'name and beta do not go together'


@dataclasses.dataclass(frozen=True)
class Unfit:
    hook: Callable[[int], int] = abs


@dataclasses.dataclass(frozen=True)
class Choosy:
    either: Optimizer | Value = Optimizer()


@dataclasses.dataclass(frozen=True)
class Special(Optimizer):
    extra: int = 0


def test_a_config_that_no_text_could_hold_is_its_authors_error():
    for config, told in ((Unfit(), 'Callable'), (Choosy(), r'Optimizer \| Value')):
        with pytest.raises(TypeError, match=told):
            dump(config)
    with pytest.raises(Mistake, match=r'optimizer: .*Optimizer, .*\(Special\)'):
        dump(Reinforce(optimizer=Special()))


# Dump


@pytest.mark.parametrize('config', WILD)
@pytest.mark.parametrize('other', WILD)
def test_dump_round_trips_from_any_config(config, other):
    assert bind(other, parse(dump(config))) == config


def test_a_random_config_round_trips():
    rng = random.Random(0)

    def text() -> str:
        return ''.join(rng.choices('ab \'"#=\\\n\r\t[](){},.:é\u2028\x00\x85😀1e-', k=rng.randrange(12)))

    def number() -> float:
        return rng.choice([0.0, -0.0, 1e-05, 1e16, math.inf, -math.inf, rng.gauss(0, 1), 10 ** rng.uniform(-300, 300)])

    def config() -> Run:
        optimizer = Optimizer(rng.choice(['adafactor', 'adamw']), number(), rng.choice([None, number()]))
        value = rng.choice([None, Value(rng.randint(-9, 9), rng.choice(['own', 'shared']))])
        return Run(
            name=text(),
            note=rng.choice([None, text()]),
            whiten=rng.random() < 0.5,
            verbosity=rng.choice(['low', 'high', None]),
            layers=tuple(rng.randint(-(10**20), 10**20) for _ in range(rng.randrange(4))),
            span=(number(), text()),
            mixed=tuple(tuple(rng.choices([None, 0, 7], k=rng.randrange(3))) for _ in range(rng.randrange(3))),
            either=rng.choice([3, 0.25]),
            mesh={text(): rng.randrange(9) for _ in range(rng.randrange(4))},
            reinforce=Reinforce(optimizer, number(), rng.randint(1, 9), value, rng.choice([0, 1, 2, 8])),
        )

    previous = Run()
    for _ in range(300):
        this = config()
        back = bind(previous, parse(dump(this)))
        assert back == this and dump(back) == dump(this) and digest(back) == digest(this)
        previous = this


def test_dump_is_every_field_in_order():
    assert dump(Reinforce(value=Value(2))).splitlines() == [
        "optimizer.name = 'adafactor'",
        'optimizer.learning_rate = 1e-05',
        'optimizer.clip = None',
        'beta = 0.05',
        'batch_size = 8',
        'value.width = 2',
        "value.trunk = 'own'",
        'shots = 0',
    ]


def test_help_text_is_path_type_and_value():
    rows = help_text(Run())
    assert [f'{path} = {value}\n' for path, _, value in rows] == dump(Run()).splitlines(keepends=True)
    types = {path: name for path, name, _ in rows}
    assert types['note'] == 'str | None' and types['reinforce.value'] == 'Value | None'
    assert types['layers'] == 'tuple[int, ...]' and types['verbosity'] == "'low' | 'high' | None"


def test_equal_configs_have_equal_text():
    one = Run(mesh={'a': 1, 'b': 2}, reinforce=Reinforce(beta=0))
    two = Run(mesh={'b': 2, 'a': 1}, reinforce=Reinforce(beta=-0.0))
    assert one == two and dump(one) == dump(two) and digest(one) == digest(two)


def test_digest_tells_every_field_and_class_apart():
    seen = {digest(config) for config in WILD} | {digest(Run(reinforce=Reinforce(beta=math.nextafter(0.05, 1))))}
    assert len(seen) == len(WILD) + 1 and all(len(d) == 10 and int(d, 16) >= 0 for d in seen)
    twin = dataclasses.make_dataclass('Twin', [('width', int), ('trunk', str, 'own')], frozen=True)
    assert dump(twin(1)) == dump(Value(1)) and digest(twin(1)) != digest(Value(1))


def test_digest_is_the_same_in_every_process_and_version():
    assert digest(WILD[3]) == 'de6f09551b'  # written once; a change orphans every work folder there is


def test_differences_are_lines_to_read():
    there, here = dump(Run(reinforce=Reinforce(value=Value(2)))), dump(Run(name='new', reinforce=Reinforce(beta=0.1)))
    for line, named in zip(differences(there, here), (
        ('name:', "'run'", "'new'"),
        ('reinforce.beta:', '0.05', '0.1'),
        ('reinforce.value:', 'absent', 'None'),
        ('reinforce.value.width:', '2', 'absent'),
        ('reinforce.value.trunk:', "'own'", 'absent'),
    ), strict=True):  # fmt: skip
        assert re.fullmatch('{} {} .* {} .*'.format(*named), line)
    assert differences(here, here) == []
    assert differences('a = nan', 'a = nan') == [] and len(differences('a = 1', 'a = True')) == 1


# Sweeps


def test_product_crosses_and_zipped_pairs():
    beta, size = over('reinforce.beta', [0, 0.05]), over('reinforce.batch_size', [1, 2, 3])
    crossed = product(beta, size)
    assert len(crossed) == 6 and product() == [{}] and product(beta) == beta and product(beta, []) == []
    assert crossed[1] == {'reinforce.beta': 0, 'reinforce.batch_size': 2}
    assert len({digest(bind(Run(), bindings)) for bindings in crossed}) == 6
    assert zipped(beta, over('name', 'ab')) == [
        {'reinforce.beta': 0, 'name': 'a'},
        {'reinforce.beta': 0.05, 'name': 'b'},
    ]
    assert product(size, product(beta, over('name', 'ab')))[-1] == {
        'reinforce.batch_size': 3, 'reinforce.beta': 0.05, 'name': 'b'
    }  # fmt: skip


def test_sweeps_that_do_not_fit_say_so():
    beta = over('reinforce.beta', [0, 1])
    assert re.fullmatch(r'zipped: .* \[2, 3\]', message(zipped, beta, over('name', 'abc')))
    assert message(product, beta, beta) == message(zipped, beta, beta)
    assert re.match(r'reinforce\.beta: .*two sweeps', message(product, beta, beta))


@dataclasses.dataclass(frozen=True)
class Observed:
    steps: int = 10
    log_every: int = dataclasses.field(default=5, metadata=SAME)


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Observed = dataclasses.field(default_factory=Observed)
    mesh: Observed = dataclasses.field(default=Observed(), metadata=SAME)


def test_what_only_observes_is_no_part_of_what_a_config_stands_for():
    plain = Outer()
    assert same(plain) == {'inner.log_every', 'mesh', 'mesh.steps', 'mesh.log_every'}
    for path in ('inner.log_every', 'mesh.steps'):
        other = bind(plain, {path: 7})
        assert digest(other) == digest(plain) and dump(other) != dump(plain)
    assert digest(bind(plain, {'inner.steps': 7})) != digest(plain)


def test_what_decides_sometimes_is_part_of_what_a_config_stands_for_then():
    """Evaluations choose among candidates, where there are several."""
    one, several = reinforce.Config(), reinforce.Config(candidates=4)
    assert 'eval_every' in same(one) and 'eval_every' not in same(several)
    assert digest(dataclasses.replace(one, eval_every=7)) == digest(one)
    assert digest(dataclasses.replace(several, eval_every=7)) != digest(several)


@pytest.mark.parametrize(
    'text', ['a', 'runs/x', 'out put.jsonl', '7', 'True', "it's", 'données', '[1]', '', 'a"b', '$x']
)
def test_a_literal_is_read_back_as_the_text_that_it_was(text):
    assert parse_binding(f'path={literal(text)}') == ('path', text)
