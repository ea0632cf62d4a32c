"""A labeler that is a server, by OpenAI's interface: vLLM, SGLang, llama.cpp, and what is hosted.

    http://host:8000/v1#MODEL                       completions: tokens go there, in the chat template of MODEL
    http://host:8000/v1?tokenizer=FOLDER#MODEL      the same, where MODEL is not the name of its tokenizer
    https://host/v1?api=chat#MODEL                  chats: text goes there, and the first token must be the verdict

Verdicts are read from log-probabilities, never from text. A server shows those of its likeliest tokens alone; the others
are mass that is not captured. Behind an answer in several tokens, the `10` of a rating, it is asked once more.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np

from rlaif_jax import hosts, log
from rlaif_jax.config import MOST, Mistake, Passing, nearest
from rlaif_jax.generation import Sampling
from rlaif_jax.labeling.scoring import SHOWN, Answerer, Answers
from rlaif_jax.labeling.wire import KEY, OPENAI, Refused, Wire
from rlaif_jax.models import presets
from rlaif_jax.paths import digest
from rlaif_jax.text import Tokenizer

N, T = TypeVar('N'), TypeVar('T')

SERVERS = 'vLLM, SGLang and llama.cpp give them, for completions'
AT_ONCE, SOON = 5.0, 60.0  # seconds: a server that is not there, or fails, is told of before the work begins
TRACE = math.log(1e-4)  # nats: what a less likely beginning goes on with is not asked for
PROBE = 'the 12345 keys of Übung and naïve'  # where tokenizers differ
TEN = 'Write the number 10, and nothing else.'
READ_BY = ('tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja')  # what tokens of a prompt hang on
# How log-probabilities are asked for, the most first: hosts refuse fields that they do not know, and larger numbers.
COMPLETIONS = tuple(
    {'max_tokens': 1, 'temperature': 0.0} | more
    for more in ({'logprobs': 20, 'return_tokens_as_token_ids': True}, {'logprobs': 20}, {'logprobs': 5})
)
CHATS = tuple(
    {limit: 1, 'temperature': 0.0, 'logprobs': True, 'top_logprobs': count}
    for count in (20, 5)
    for limit in ('max_tokens', 'max_completion_tokens')
)


# Addresses


def is_address(name: str | Path) -> bool:
    """Whether a labeler's name is that of a server, and not of a page of the hub."""
    return bool(re.match(r'https?://(?!(huggingface\.co|hf\.co)/)', str(name)))


@dataclass(frozen=True)
class Address:
    """Where a model is served and how it is asked, read from one text."""

    url: str  # without what follows `?`
    model: str  # as the server calls it
    tokenizer: str = ''  # a folder or a name on the hub; '' where the model's name is one
    api: str = 'completions'  # or chat
    parallel: int = 32  # requests at once
    timeout: float = 300.0  # seconds without a byte of an answer
    patience: float = 600.0  # seconds without any answer, before the run stops

    APIS: ClassVar = ('completions', 'chat')

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises `Mistake` for what is no address, without repeating what may be a secret."""
        try:
            split = urlsplit(text)
            host, _ = split.hostname, split.port
        except ValueError as error:
            raise Mistake(f'an address of a server cannot be read ({error}); write http://host:8000/v1#MODEL') from None
        netloc = split.netloc.rpartition('@')[2]
        url = f'{split.scheme}://{netloc}{split.path.rstrip("/") or "/v1"}'
        if not host:
            raise Mistake(f'{url}: names no host; write http://host:8000/v1#MODEL')
        if '@' in split.netloc:
            raise Mistake(f'{url}: a password or a key in an address would stand in every log; set {KEY} instead')
        if not split.fragment:
            raise Mistake(f'{url}: which model? Write {url}#MODEL, by a name from {url}/models')
        kinds = {'tokenizer': str, 'api': str, 'parallel': int, 'timeout': float, 'patience': float}
        given: dict[str, Any] = {}
        for name, value in parse_qsl(split.query, keep_blank_values=True):
            if name not in kinds:
                hope = f'set {KEY}' if 'key' in name else f'did you mean {nearest(name, kinds)}?'
                raise Mistake(f'{url}: ?{name}= is none of {", ".join(kinds)}; {hope}')
            try:
                given[name] = kinds[name](value)
            except ValueError:
                raise Mistake(f'{url}: {name}={value} is no number') from None
        found = cls(url, unquote(split.fragment), **given)
        if found.api not in cls.APIS:
            raise Mistake(f'{url}: api={found.api}; did you mean {nearest(found.api, cls.APIS)}?')
        if not (1 <= found.parallel <= 4096 and 0 < found.timeout <= MOST and 0 <= found.patience <= MOST):
            raise Mistake(f'{url}: parallel is 1 to 4096, timeout and patience are seconds')
        if found.tokenizer and found.api == 'chat':
            raise Mistake(f'{url}: text goes to api=chat, so tokenizer={found.tokenizer} would change nothing')
        return found

    def __str__(self) -> str:
        return f'{self.url}#{self.model}'

    def read_tokenizer(self) -> Tokenizer | Words:
        """What makes tokens of prompts. Raises `Mistake` where it is not known, `Absent` where a plan would fetch it."""
        return Words() if self.api == 'chat' else Tokenizer.load(self._folder())

    def fingerprint(self) -> str:
        """Ten hex digits for what a label hangs on: the model's name, the interface, the tokenizer. Not the host: a server
        that is started elsewhere goes on with the labels of the same model.
        """
        said = [self.model, self.api]
        if self.api != 'chat':
            try:
                folder = self._folder()
            except presets.Absent:
                return 'absent'
            said += [digest(folder / name) for name in READ_BY if (folder / name).is_file()]
        return sha256('\0'.join(said).encode()).hexdigest()[:10]

    def _folder(self) -> Path:
        try:
            return presets.resolve(self.tokenizer or self.model, presets.TOKENIZER)
        except presets.Absent:
            raise
        except Mistake as mistake:
            if self.tokenizer:
                raise
            hope = f'name it before the #: {self.url}?tokenizer=FOLDER_OR_NAME_ON_THE_HUB#{self.model}'
            raise type(mistake)(f'{self}: its tokenizer is not known by its name ({mistake}); {hope}') from None


class Words:
    """In the place of a tokenizer where text goes to a server: pieces of words, about as long as tokens are. Joined they
    are the text again.
    """

    turn, start = None, ()
    hf = SimpleNamespace(unk_token_id=None, init_kwargs={})
    _PIECE = re.compile(r' ?\w{1,6}|\W')

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._pieces: list[str] = []

    def encode(self, texts: Sequence[str], *, control: bool = False, behind: bool = False) -> list[list[int]]:
        """As `Tokenizer.encode`; no text is a control token here."""
        rows = []
        for text in texts:
            whole = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
            for piece in (found := self._PIECE.findall(whole)):
                if piece not in self._number:
                    self._number[piece] = len(self._pieces)
                    self._pieces.append(piece)
            rows.append([self._number[piece] for piece in found])
        return rows

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """As `Tokenizer.decode`."""
        return [''.join(self._pieces[i] for i in row) for row in rows]


# What it says


@dataclass(frozen=True)
class Shown:
    """One of the tokens that a server shows."""

    id: int | None  # where the server says it
    text: str
    logp: float  # nats


def shown(answer: dict[str, Any]) -> list[Shown] | None:
    """The likeliest first tokens of an answer, of completions or of chats; None where it gives no log-probabilities."""
    try:
        said = answer['choices'][0]['logprobs']
        if 'content' in said:
            content = said['content'] or [{'top_logprobs': []}]
            rows = [(one.get('id'), one['token'], one['logprob']) for one in content[0]['top_logprobs']]
        else:
            tops = said['top_logprobs'] or [{}]
            rows = [(None, text, logp) for text, logp in (tops[0] or {}).items()]
        found = [Shown(_id(id, text), str(text), float(logp)) for id, text, logp in rows]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None
    total = sum(math.exp(min(one.logp, 700.0)) for one in found)
    return found if total <= 1.01 else None  # not for NaN


def _id(id: Any, text: str) -> int | None:
    number = re.fullmatch(r'token_id:(\d+)', text)
    return int(number[1]) if number else id if type(id) is int else None


class Served:
    """A model behind an address, probed: what labelers take in the place of a model that is here."""

    def __init__(self, address: str, alone: bool = False) -> None:
        """All processes ask for one together, unless it is for this one `alone`."""
        at = self.address = Address.parse(address)
        self.name, self.tokenizer, self.chat = str(at), at.read_tokenizer(), at.api == 'chat'
        self.wire = Wire(self.name, at.url, parallel=at.parallel, timeout=at.timeout, patience=at.patience)
        found = self._connect() if alone else hosts.told(self._connect)
        self.how: dict[str, Any] = found['how']  # how it is asked for log-probabilities
        self.most: int = found['most']  # tokens of a prompt and of what follows it

    def answerer(self, preamble: Sequence[int], answers: Answers, max_length: int) -> Answerer:
        kind = ChatAnswerer if self.chat else TokenAnswerer
        return kind(self, preamble, answers, min(max_length, self.most - 1))  # what follows is a token at least

    def ask(self, prompt: list[int] | str, how: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """The answer to a prompt: tokens, or the text of a message of the user. Takes and raises what `Wire.ask` does."""
        asked = {'messages': [{'role': 'user', 'content': prompt}]} if self.chat else {'prompt': prompt}
        path = 'chat/completions' if self.chat else 'completions'
        return self.wire.ask(path, {'model': self.address.model, **asked, **how}, **more)

    def first(self, prompt: list[int] | str, **more: Any) -> list[Shown]:
        """The likeliest tokens behind a prompt. Raises `Refused`, too, for an answer without log-probabilities, as some
        servers give where nothing is written.
        """
        if (found := shown(self.ask(prompt, self.how, **more))) is None:
            raise Refused('an answer without log-probabilities')
        return found

    def text(self, token: Shown) -> str:
        """What a token that it shows says."""
        return self.tokenizer.hf.decode([token.id]) if token.text.startswith('token_id:') else token.text

    def probe(self, how: Mapping[str, Any], **more: Any) -> None:
        """Asks a little, to see whether it answers. Raises as `ask` does, and `Mistake` where log-probabilities are asked
        for and none are shown.
        """
        prompt = PROBE if self.chat else [*self.tokenizer.start, *self.tokenizer.encode([PROBE])[0]]
        answer = self.ask(prompt, how, **more)
        if 'logprobs' in how and not shown(answer):
            what = 'gives no log-probabilities, and verdicts are read from nothing else'
            raise Mistake(f'{self.name}: {what}; {SERVERS}')

    # Before it is asked

    def _connect(self) -> dict[str, Any]:
        """What there is to know of it. Raises `Passing` where it cannot be reached, `Mistake` where it is of no use."""
        most = self._listed()
        for how in CHATS if self.chat else COMPLETIONS:
            try:
                self.probe(how, patience=min(SOON, self.address.patience), tries=2, broke={500})  # at a field, perhaps
            except Refused as error:
                refused = error
            else:
                break
        else:
            kind = Passing if refused.broke else Mistake
            raise kind(f'{self.name}: is not to be asked for log-probabilities, it answers {refused}; {SERVERS}')
        if not self.chat:
            self._check_tokens()
        return {'how': how, 'most': most}

    def _listed(self) -> int:
        """The longest prompt that a server's list says; the largest number where it does not, or keeps no list."""
        try:
            listed = self.wire.ask('models', patience=AT_ONCE, broke=frozenset()).get('data')
        except Refused:
            return MOST
        models = {one['id']: one for one in listed or [] if isinstance(one, dict) and isinstance(one.get('id'), str)}
        if models and self.address.model not in models:
            near = nearest(self.address.model, models)
            raise Mistake(f'{self.name}: no such model there; did you mean {self.address.url}#{near}?')
        one = models.get(self.address.model, {})
        meta = one.get('meta')  # of llama.cpp
        most = one.get('max_model_len') or isinstance(meta, dict) and meta.get('n_ctx')
        return most if type(most) is int and most > 1 else MOST

    def _check_tokens(self) -> None:
        """Raises `Mistake` where the server says, as most do, that it reads other text from the same tokens."""
        (tokens,) = self.tokenizer.encode([PROBE])
        root, found = self.address.url.removesuffix('/v1'), None
        with suppress(Mistake, Refused):  # not every server can
            answer = self.wire.ask(f'{root}/detokenize', {'model': self.address.model, 'tokens': tokens}, patience=0.0)
            found = next((answer[name] for name in ('prompt', 'content', 'text') if name in answer), None)
        if isinstance(found, str) and found.strip() != self.tokenizer.decode([tokens])[0].strip():
            raise Mistake(
                f'{self.name}: has another tokenizer than {self.address.tokenizer or self.address.model}: where that says '
                f'{PROBE!r} it reads {found[:80]!r}. ?tokenizer=… before the # names the right one'
            )


def served(address: str) -> Served:
    """A labeler that is a server, for `label`, `rate` and `rater`: 'http://host:8000/v1#MODEL', where the name of the model
    is that of its tokenizer on the hub or of a folder, or 'http://host:8000/v1?tokenizer=FOLDER#MODEL'.

    Raises `Mistake` for an address that is none, for a model that is not there and a server that gives no
    log-probabilities; `Passing`, a `Mistake`, too, where it cannot be reached.
    """
    if not isinstance(address, str) or not is_address(address):
        raise Mistake(f'{address!r:.80} is no address; write http://host:8000/v1#MODEL')
    return Served(address)


class ServedAnswerer(Answerer):
    """The answers of a server, which the first process of several asks."""

    def __init__(self, lm: Served, preamble: Sequence[int], answers: Answers, max_length: int) -> None:
        super().__init__(lm.name, preamble, answers, max_length)
        self.lm = lm

    @abstractmethod
    def probabilities(self, row: Sequence[int]) -> np.ndarray:
        """(C,) behind a row. Raises `Refused`."""

    @abstractmethod
    def prompt(self, row: Sequence[int]) -> list[int] | str:
        """A row behind the preamble, as the server takes it."""

    @abstractmethod
    def said(self, row: Sequence[int], how: Mapping[str, Any]) -> str:
        """What is written behind a row. Raises `Refused`, for an answer without text, too."""

    def write(self, rows: Sequence[Sequence[int]], how: Sampling, until: str) -> list[str | None]:
        limit = 'max_completion_tokens' if 'max_completion_tokens' in self.lm.how else 'max_tokens'
        asked: dict[str, Any] = {limit: how.max_new_tokens, 'temperature': how.temperature, 'stop': [until]}
        if how.top_k and urlsplit(self.lm.address.url).hostname != OPENAI:  # which does not know it
            asked['top_k'] = how.top_k

        def one(i: int) -> str | None:
            seed = {'seed': (how.seed + i) % MOST} if how.temperature else {}
            return self._or(None, lambda: self.said(rows[i], asked | seed), asked | seed | {limit: 1})

        return hosts.told(lambda: self.lm.wire.each(one, range(len(rows))))

    def likeliest(self, rows: Sequence[Sequence[int]]) -> list[list[tuple[str, float]]]:
        def one(row: Sequence[int]) -> list[tuple[str, float]]:
            tokens = self._or([], lambda: self.lm.first(self.prompt(row)), self.lm.how)
            first = sorted(tokens, key=lambda token: -token.logp)[:SHOWN]
            return [(self.lm.text(token), math.exp(token.logp)) for token in first]

        return hosts.told(lambda: self.lm.wire.each(one, rows))

    def _score(self, rows: Sequence[Sequence[int]], group: int) -> list[list[float]]:
        none = np.zeros(len(self.answers.names))
        one = lambda row: self._or(none, lambda: self.probabilities(row), self.lm.how).tolist()  # noqa: E731
        return hosts.told(lambda: self.lm.wire.each(one, rows))

    def _or(self, none: N, do: Callable[[], T], how: Mapping[str, Any]) -> T | N:
        """What `do` gives; `none` where the server does not take this prompt, but takes others that are asked so."""
        for again in (True, False):
            try:
                return do()
            except Refused as error:
                try:
                    self.lm.probe(how, broke=frozenset())  # however long it breaks: it may start again
                except Refused:
                    raise Mistake(f'{self.lm.name}: takes no prompts any more, it answers {error}') from None
                if not (error.broke and again):  # what broke at this prompt may have been about to break anyway
                    log.say_once(f'{self.lm.name}: some prompts get no answer but {error}')
                    break
        return none


class TokenAnswerer(ServedAnswerer):
    """Completions: the tokens of a prompt go there, so whatever stands in a text, no control token is found in it."""

    def __init__(self, lm: Served, preamble: Sequence[int], answers: Answers, max_length: int) -> None:
        super().__init__(lm, preamble, answers, max_length)
        self.by_text: dict[str, int] = {}  # where the server does not say which token it shows
        for token in dict.fromkeys(token for way in answers.ways for token in way):
            piece = lm.tokenizer.hf.convert_ids_to_tokens(token)
            for text in (lm.tokenizer.hf.decode([token]), piece, piece.replace('▁', ' ').replace('Ġ', ' ')):
                if text:  # of many control tokens it is none
                    self.by_text.setdefault(text, token)

    def probabilities(self, row: Sequence[int]) -> np.ndarray:
        prompt = self.prompt(row)
        after, reach = {(): self._tokens(prompt)}, {(): 0.0}  # of each node: the tokens behind it, and its own log P
        for node in self.answers.nodes:
            reach[node] = reach[node[:-1]] + after[node[:-1]].get(node[-1], -math.inf)
            after[node] = self._tokens([*prompt, *node]) if reach[node] > TRACE else {}
        logp_A = [reach[way[:-1]] + after[way[:-1]].get(way[-1], -math.inf) for way in self.answers.ways]
        return self.answers.probability(np.array([logp_A]))[0]

    def prompt(self, row: Sequence[int]) -> list[int]:
        return [*map(int, self.preamble), *map(int, row)]

    def said(self, row: Sequence[int], how: Mapping[str, Any]) -> str:
        answer = self.lm.ask(self.prompt(row), how)
        return _text(lambda: answer['choices'][0]['text'])

    def _tokens(self, prompt: list[int]) -> dict[int, float]:
        """log P of the tokens that the server shows behind a prompt, as far as they are told apart."""
        found: dict[int, float] = {}
        for one in self.lm.first(prompt):  # several tokens may decode alike
            token = self.by_text.get(one.text, -1) if one.id is None else one.id
            found[token] = float(np.logaddexp(found.get(token, -math.inf), one.logp))
        return found


class ChatAnswerer(ServedAnswerer):
    """Chats: the text of a prompt goes there as a user's message, and the answer is its first token."""

    def __init__(self, lm: Served, preamble: Sequence[int], answers: Answers, max_length: int) -> None:
        super().__init__(lm, preamble, answers, max_length)
        alike = any(a != b and a.startswith(b) for a in answers.names for b in answers.names)
        if alike and not hosts.told(self._writes_ten):
            raise Mistake(
                f'{lm.name}: writes 10 in two tokens. Of a chat the first one alone is shown, which does not tell 10 from '
                f'1: ask it by completions, {lm.address.url}?tokenizer=…#{lm.address.model}, or ask another model'
            )

    def probabilities(self, row: Sequence[int]) -> np.ndarray:
        prob = dict.fromkeys(self.answers.names, 0.0)
        for one in self.lm.first(self.prompt(row)):
            if (name := one.text.strip(' ')) in prob:
                prob[name] += math.exp(one.logp)
        return np.array(list(prob.values()))

    def said(self, row: Sequence[int], how: Mapping[str, Any]) -> str:
        answer = self.lm.ask(self.prompt(row), how)
        return _text(lambda: answer['choices'][0]['message']['content'])

    def _writes_ten(self) -> bool:
        """Whether 10 is one token to it."""
        with suppress(Refused):
            return any(one.text.strip() == '10' for one in self.lm.first(TEN, broke=frozenset()))
        return False

    def prompt(self, row: Sequence[int]) -> str:
        return self.lm.tokenizer.decode([[*self.preamble, *row]])[0]


def _text(read: Callable[[], Any]) -> str:
    """What was written. Raises `Refused` where that is no text: a chat that calls a tool or declines has null."""
    with suppress(KeyError, IndexError, TypeError):
        if isinstance(found := read(), str):
            return found
    raise Refused('an answer without text')
