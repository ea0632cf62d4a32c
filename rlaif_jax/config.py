"""A config is data: frozen dataclasses inside, lines of `path.to.field = literal` (gin's syntax) outside.

    bindings = parse(text, 'config.gin')      # {'reinforce.beta': 0.1, ...}
    config = bind(config, bindings)           # a new config, checked against its annotations
    text = dump(config)                       # bind(any, parse(dump(c))) == c

A field is a bool, int, float, str, Literal[...], tuple[...], dict[str, ...], a union of these (`float | None`), another
config, or `Config | None`. Equal configs have equal dumps, so a dict field has no order: where order matters, use a
tuple of pairs.
"""

import ast
import dataclasses
import difflib
import errno
import functools
import hashlib
import inspect
import io
import itertools
import json
import numbers
import os
import re
import shlex
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

C = TypeVar('C')  # the class of a config
# Metadata of a field that only observes, or saves memory: `field(default=1, metadata=SAME)`. It changes no number, so what
# was begun with one value of it goes on with another. Where that hangs on other fields, `same_if` is asked of its config.
SAME = {'same': True}


def same_if(holds: Callable[[Any], bool]) -> dict[str, Any]:
    """Metadata of a field that is as `SAME` says wherever `holds(config)` of the config that it is in."""
    return {'same': holds}


# Metadata of a field that may name a file or a folder of data. Other content is other data, so a comment notes it.
FILE, CONTENT = {'file': True}, '# content of '
Bindings = dict[str, Any]  # path: value

COMMAND_LINE = 'command line'
# Loose, so that bind can name the nearest right path.
_BINDING = re.compile(r'\s*([A-Za-z_-][\w.-]*)\s*=(.*)', re.DOTALL)
_BARE_WORD = re.compile(r'[\w./:~-]+|https?://[^\s\'"]+')
# Where a model is served: what stands before its name.
_ADDRESS = re.compile(r'https?://[^\s\'"?#]+(?:\?([^\s\'"#]*))?#(?=[^\s\'"])')
_DIRECTIVE = re.compile(r'#\s*(noqa|fmt)')  # a comment that is for tools
_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|#.*|.""")
_NOT_FINITE = {'inf': float('inf'), 'nan': float('nan')}


class Mistake(ValueError):
    """An error for the person who typed something: its text says what was wrong, where, and the nearest right thing."""

    status = 2  # of a program that it ends: the same command would meet it again


class Passing(Mistake):
    """One of the surroundings, which may be over the next time: a full disk, a network that is away."""

    status = 74  # EX_IOERR of sysexits.h


# What a system may say to any reading or writing, whatever was asked of it beforehand: what may pass, and what stays.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
LASTING = (
    errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE,
    errno.ENFILE,
)  # fmt: skip


def refused(error: Exception) -> int | None:
    """Which of these an error is: by its number or, where a library wrapped it, by the system's words. None for another."""
    if number := getattr(error, 'errno', None):
        return number if number in PASSING + LASTING else None
    return next((number for number in PASSING + LASTING if os.strerror(number) in str(error)), None)


def refusal(error: Exception, text: str) -> Mistake:
    """What to raise, with this text, where the system did not read or write: `Passing` where that may pass."""
    return (Passing if refused(error) in PASSING else Mistake)(text)


MOST = 2**31 - 1  # the largest number that every library below counts with; beyond it two seeds would be one run
HOTTEST = 1000.0  # the highest temperature: by far every token is as likely as any other


def check_within(config: Any, low: float, high: float, *names: str) -> None:
    """Raises Mistake where a field of `config` is not in [low, high], and names the first that is not. NaN is in none."""
    for name in names:
        if not low <= (value := getattr(config, name)) <= high:
            small = {0: 'must not be negative', 1: 'must be positive'}.get(low, f'must be {low} or more')
            must = small if value < low else f'must be {low} to {high}'
            raise Mistake(f'{name} {must}, not {value}')


# Text to bindings


def parse(text: str, where: str = 'bindings') -> Bindings:
    """Reads lines of `path = literal`, with `#` comments; inside brackets a literal may go on over several lines.

    Bare words (`adamw`, `google/gemma-2-2b`) are strings; `inf` and `nan` are floats. `where` is the file's name, for
    errors. Raises Mistake, naming `where` and the line, for bad syntax and for a path bound twice.
    """
    bindings, line_of = {}, {}
    statement, depth, start = '', 0, 0
    for number, line in enumerate(text.split('\n'), 1):
        start = start if statement else number
        tokens = list(itertools.takewhile(lambda token: token[0] != '#', _TOKEN.findall(line)))
        statement += ''.join(tokens) + '\n'
        depth += sum((token in '[({') - (token in '])}') for token in tokens)
        if depth > 0:
            continue
        if statement.strip():
            path, value = parse_binding(statement, f'{where}:{start}')
            if path in bindings:
                raise Mistake(f'{where}:{start}: {path} is already bound on line {line_of[path]}')
            bindings[path], line_of[path] = value, start
        statement, depth = '', 0
    if statement:
        raise Mistake(f'{where}:{start}: a bracket is opened here and never closed')
    return bindings


def parse_binding(text: str, where: str = COMMAND_LINE) -> tuple[str, Any]:
    """Reads one `path=literal`, as on a command line: ('a.b', 'adamw') for 'a.b=adamw'. Raises Mistake for bad syntax."""
    match = _BINDING.fullmatch(text)
    if not match:
        how = 'path.to.field=value, without spaces or in quotes' if where == COMMAND_LINE else 'path.to.field = value'
        raise Mistake(f'{where}: {text.strip()!r} is not a binding; write {how}')
    path, literal = match[1], match[2].strip()
    try:
        return path, ast.literal_eval(_NamedFloats().visit(ast.parse(literal, mode='eval')))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        if _BARE_WORD.fullmatch(literal):
            return path, literal
    problem = f'{literal} is neither a literal nor a bare word' if literal else 'there is no value'
    hint = f'{path}=["…"]' if literal[:1] in ('[', '(') else f'{path}="…"'
    hint = shlex.quote(hint) if where == COMMAND_LINE else hint  # of which a shell takes one pair of quotes away
    raise Mistake(f'{where}: {path}: {problem}; text goes in quotes, like {hint}')


def literal(text: str) -> str:
    """A text as `parse_binding` reads it back: bare where it can be, else in quotes."""
    return text if _BARE_WORD.fullmatch(text) and parse_binding(f'x={text}') == ('x', text) else json.dumps(text)


class _NamedFloats(ast.NodeTransformer):
    """Lets `inf` and `nan`, which repr writes but literal_eval does not read, stand anywhere in a literal."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_NOT_FINITE[node.id]) if node.id in _NOT_FINITE else node


# Bindings to configs


def bind(config: C, bindings: Mapping[str, Any]) -> C:
    """Returns a new config with each dotted path set to its value. All are set at once; `config` stays as it is.

    An int becomes a float, and a list a tuple, where the field wants one. A bool is no int, and neither is 2.0. A path
    into an absent `Config | None` makes that config from its defaults. Raises Mistake for an unknown path, for a value
    of the wrong type, and for what a config's own `__post_init__` refuses by a ValueError.
    """
    paths = _paths(type(config))
    for path in bindings:
        if path not in paths:
            near = nearest(path, paths)
            raise Mistake(f'{path}: no such field' + (f'; did you mean {near}?' if near else ''))
    return _rebuilt(type(config), config, bindings, '')


def _rebuilt(cls: type[C], config: C | None, bindings: Mapping[str, Any], prefix: str) -> C:
    """`config`, or a new `cls` where there is none, with those of the `bindings` that lie below `prefix`."""
    changes = {}
    for name, hint in _hints(cls).items():
        path, nested = prefix + name, _nested(hint)
        below = [other for other in bindings if other.startswith(path + '.')]
        if path in bindings and nested and not _fits(bindings[path], hint):
            fields = ', '.join(f'{path}.{field}' for field in _hints(nested))
            raise Mistake(f'{path}: is a whole {nested.__name__}; bind its fields: {fields}')
        if path in bindings and below:
            raise Mistake(f'{path}: cannot be {bindings[path]!r} while {below[0]} is bound too')
        if path in bindings:
            changes[name] = _checked(path, bindings[path], hint)
        elif below:
            changes[name] = _rebuilt(nested, getattr(config, name, None), bindings, path + '.')
    if not changes:
        return config
    try:
        if config is not None:
            return dataclasses.replace(config, **changes)
        optional = {field.name for field in dataclasses.fields(cls) if field.default is not field.default_factory}
        if missing := [prefix + name for name in _hints(cls) if name not in optional | changes.keys()]:
            raise Mistake(f'a new {cls.__name__} also needs {", ".join(missing)}')
        return cls(**changes)
    except ValueError as error:
        raise Mistake(f'{prefix[:-1]}: {error}' if prefix else str(error)) from error


def _checked(path: str, value: Any, hint: Any) -> Any:
    """`value` as the field at `path` keeps it; raises Mistake naming the path, what it wants and what it got."""
    for fit in _fits(value, hint):
        return fit
    nearest = _nearest(value, hint)
    hope = f'; did you mean {nearest}?' if nearest else ''
    raise Mistake(f'{path}: wants {_name(hint)}, got {value!r} ({type(value).__name__}){hope}')


def _fits(value: Any, hint: Any) -> list[Any]:
    """[`value` in the one form in which a field annotated `hint` keeps it], or [] where it does not fit."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float or hint is int:  # the abstract kinds let in numpy's scalars, which sweeps are full of
        fits = isinstance(value, numbers.Real if hint is float else numbers.Integral) and not isinstance(value, bool)
        if not fits or (hint is float and isinstance(value, int) and abs(value) > sys.float_info.max):
            return []
        return [hint(value) + hint(0)]  # -0.0 becomes 0.0: equal configs dump alike
    if hint is str:
        return [str.__str__(value)] if isinstance(value, str) else []
    if choices := _choices(hint):
        return [choice for choice in choices if type(choice) is type(value) and choice == value]
    if len(_arms(hint)) > 1:
        fits = [fit for arm in args for fit in _fits(value, arm)]
        return sorted(fits, key=lambda fit: type(fit) is not type(value))[:1]  # for `float | int`, an int stays one
    if origin is tuple:
        items = list(value) if isinstance(value, list | tuple) else [...]  # an ellipsis fits nothing
        kinds = args[:1] * len(items) if args[1:] == (...,) else args
        fits = [fit for item, kind in zip(items, kinds, strict=False) for fit in _fits(item, kind)]
        return [tuple(fits)] if len(fits) == len(items) == len(kinds) else []
    if origin is dict:
        items = list(value.items()) if isinstance(value, dict) else [(..., ...)]
        fits = [(key, item) for k, v in items for key in _fits(k, args[0]) for item in _fits(v, args[1])]
        return [dict(sorted(fits, key=repr))] if len(fits) == len(items) else []
    if dataclasses.is_dataclass(hint):
        return []  # a config is never a value: its fields are bound one by one
    raise TypeError(f'a config field cannot be annotated {_name(hint)}')


def _nearest(value: Any, hint: Any) -> str | None:
    """The literal that someone who wrote `value` for a field annotated `hint` may well have meant, if there is one."""
    guesses = [int(value)] if isinstance(value, float) and value.is_integer() else []
    guesses += [str(value), (value,)] if isinstance(value, numbers.Real) else [(value,)]
    for fit in itertools.chain.from_iterable(_fits(guess, hint) for guess in guesses):
        return repr(fit)
    spelled = {str(choice).lower(): repr(choice) for arm in _arms(hint) for choice in _choices(arm)}
    close = difflib.get_close_matches(value.lower(), spelled, n=1, cutoff=0.4) if isinstance(value, str) else []
    return spelled[close[0]] if close else None


def nearest(typed: str, paths: Iterable[str]) -> str | None:
    """The path, or the name, that is most like what somebody typed; None where there are none."""
    return max(paths, key=functools.partial(_likeness, typed), default=None)


def _likeness(typed: str, path: str) -> float:
    """How like two paths are, 0..2: as a whole, and in their last words, so that `beta` finds `reinforce.beta`."""
    pairs = (typed, path), (typed.rpartition('.')[2], path.rpartition('.')[2])
    return sum(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)


# Configs to text


def dump(config: Any) -> str:
    """Every field of `config` as a line `path = literal`, in the fields' order, as parse and bind read it back.

    Raises Mistake where a field holds what its annotation forbids. (nan equals nothing, so only its text round-trips.)
    """
    return ''.join(f'{path} = {literal}\n' for path, _, literal in help_text(config))


def help_text(config: Any) -> list[tuple[str, str, str]]:
    """(path, type, value as a literal) for every field of `config`, in the fields' order. Raises as dump does."""
    return [(path, _name(hint), repr(_checked(path, value, hint))) for path, hint, value in _leaves(config)]


def explain(config: Any) -> list[tuple[str, str, str, str]]:
    """(path, type, value as a literal, the comment on it in the source) for every field of `config`, in order.

    A config within it comes before its own fields. It has its class's name for a type, and no value.
    """
    values = {path: (kind, literal) for path, kind, literal in help_text(config)}
    return [(path, *values.get(path, (kind, '')), said) for path, kind, said in _said(type(config))
            if path in values or any(leaf.startswith(f'{path}.') for leaf in values)]  # fmt: skip


def _said(cls: type, prefix: str = '') -> Iterator[tuple[str, str, str]]:
    """(path, type, what the source says of it) for every path below a `cls`."""
    for name, hint in _hints(cls).items():
        nested, said = _nested(hint), [_comments(cls).get(name, '')]
        if nested:
            said.append((inspect.getdoc(nested) or '').split('\n\n')[0])
        yield prefix + name, _name(hint), '\n'.join(filter(None, said))
        if nested:
            yield from _said(nested, f'{prefix}{name}.')


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    """The comment beside each field in the source of `cls` or, where there is none, the lines of it right above."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    said = {t.start[0]: t.string.lstrip('# ') for t in tokens if not _DIRECTIVE.match(t.string)}
    alone, found = {t.start[0] for t in tokens if t.line.strip() == t.string}, {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            above = list(itertools.takewhile(alone.__contains__, range(node.lineno - 1, 0, -1)))[::-1]
            lines = [n for n in range(node.lineno, node.end_lineno + 1) if n in said] or above
            found[node.target.id] = ' '.join(said[n] for n in lines)
    return found


def digest(config: Any, more: str = '') -> str:
    """Ten hex digits that stand for the class of `config` and its values. They are the same in every process.

    Fields that change no number (`SAME`) are left out, and where models are served.
    more: text that is part of the identity, too.
    """
    free = same(config)
    lines = ''.join(f'{path} = {literal}\n' for path, _, literal in help_text(config) if path not in free)
    return hashlib.sha256(f'{type(config).__name__}\n{anywhere(lines)}{more}'.encode()).hexdigest()[:10]


def anywhere(text: str) -> str:
    """A config's text without where models are served and how much is asked there at once: no number hangs on that."""

    def short(address: re.Match[str]) -> str:
        told = [option for option in (address[1] or '').split('&') if option.startswith(('api=', 'tokenizer='))]
        return f'http://HOST?{"&".join(told)}#'

    return _ADDRESS.sub(short, text)


def same(config: Any, prefix: str = '') -> frozenset[str]:
    """The paths of all fields of a config that change no number: those marked `SAME`, and all below them."""
    found: set[str] = set()
    for field in dataclasses.fields(config):
        value, path, mark = getattr(config, field.name), f'{prefix}{field.name}', field.metadata.get('same')
        nested = dataclasses.is_dataclass(value)
        if mark is True or (mark and mark(config)):
            found |= {path, *(_paths(type(value), f'{path}.') if nested else ())}
        elif nested:
            found |= same(value, f'{path}.')
    return frozenset(found)


@functools.cache
def marked(cls: type, mark: str, prefix: str = '') -> frozenset[str]:
    """The paths of all fields of a `cls` that have `mark` in their metadata, and of all fields below them."""
    those = {field.name for field in dataclasses.fields(cls) if mark in field.metadata}
    found: set[str] = set()
    for name, hint in _hints(cls).items():
        nested = _nested(hint)
        if name in those:
            found |= {prefix + name, *(_paths(nested, f'{prefix}{name}.') if nested else ())}
        elif nested:
            found |= marked(nested, mark, f'{prefix}{name}.')
    return frozenset(found)


def differences(there: str, here: str) -> list[str]:
    """How two dumps differ: for each path a line such as 'reinforce.beta: 0.05 there, 0.1 here'. [] where they agree."""
    old, new = ({path: repr(value) for path, value in parse(text).items()} for text in (there, here))
    paths = [path for path in new | old if new.get(path) != old.get(path)]
    return [f'{path}: {old.get(path, "absent")} there, {new.get(path, "absent")} here' for path in paths]


# Sweeps: lists of bindings, one for each run


def over(path: str, values: Iterable[Any]) -> list[Bindings]:
    """Bindings of a run for each value of one field: over('reinforce.beta', [0.0, 0.05])."""
    return [{path: value} for value in values]


def product(*sweeps: list[Bindings]) -> list[Bindings]:
    """Every combination of one run from each sweep; the last varies fastest. Raises Mistake for a path bound twice."""
    return [_merged(runs) for runs in itertools.product(*sweeps)]


def zipped(*sweeps: list[Bindings]) -> list[Bindings]:
    """The first runs of all sweeps as one, then the second ones, … Raises Mistake for unequal lengths or a shared path."""
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise Mistake(f'zipped: sweeps of unequal lengths {lengths}')
    return [_merged(runs) for runs in zip(*sweeps, strict=True)]


def _merged(runs: tuple[Bindings, ...]) -> Bindings:
    merged = {}
    for path, value in itertools.chain.from_iterable(run.items() for run in runs):
        if path in merged:
            raise Mistake(f'{path}: two sweeps bind it at once')
        merged[path] = value
    return merged


# Fields, as their annotations have them


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The annotation of each field that a `cls` is made from, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _paths(cls: type, prefix: str = '') -> list[str]:
    """Every path below a `cls`, those of whole configs too."""
    below = {prefix + name: _nested(hint) for name, hint in _hints(cls).items()}
    return [path for top, nested in below.items() for path in [top, *(_paths(nested, top + '.') if nested else ())]]


def _leaves(config: Any, prefix: str = '') -> Iterator[tuple[str, Any, Any]]:
    """(path, annotation, value) of everything that is not itself a config; an absent config is a leaf, None."""
    for name, hint in _hints(type(config)).items():
        value, nested = getattr(config, name), _nested(hint)
        if type(value) is nested:
            yield from _leaves(value, f'{prefix}{name}.')
        else:  # a subclass of the annotated config too, for dump to refuse: bind could not bring it back
            yield prefix + name, hint, value


def _arms(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union; anything else is its own only one."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _nested(hint: Any) -> type | None:
    """The config class of a field annotated `Config` or `Config | None`; None for any other field."""
    nested = next((arm for arm in _arms(hint) if dataclasses.is_dataclass(arm)), None)
    if nested and {*_arms(hint)} - {nested, type(None)}:
        raise TypeError(f'a config field cannot be annotated {_name(hint)}: bindings do not choose between classes')
    return nested


def _choices(hint: Any) -> tuple[Any, ...]:
    """All values of a type that has only a few: a Literal, bool, None; () for any other."""
    few = {bool: (True, False), type(None): (None,)}
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else few.get(hint, ())


def _name(hint: Any) -> str:
    """An annotation as a person reads it, few choices as such: "float | None", "'adafactor' | 'adamw'"."""
    names = [_name(arm) for arm in _arms(hint) if arm is not hint] or [repr(choice) for choice in _choices(hint)]
    return ' | '.join(names) or (hint.__name__ if isinstance(hint, type) else str(hint).replace('typing.', ''))
