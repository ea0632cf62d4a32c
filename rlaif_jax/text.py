"""Text to tokens and back, safely: text of users and policies is data, so control tokens are never parsed in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from rlaif_jax import chat, foreign, log
from rlaif_jax.config import Mistake

# Spaces, lines, digits, accents, an emoji, code: where tokenizers that are not the same tell themselves apart.
PROBE = (
    "Hello world, it's  12345 naïve Übung 中文 👍🏽\n\n\tdef f(x_1):\n        return x_1 ** 2  # ÷\r\n 's I'LL \u200bé"
)
ROLES = (('user',), ('system', 'user'), ('user', 'assistant'))  # of dialogues that a template is tried on
SLOW = {  # what holds a tokenizer that is not fast -> what it takes to convert it
    'tokenizer.model': 'with sentencepiece installed, or tiktoken',
    'tiktoken.model': 'with tiktoken installed',
    'tekken.json': 'with mistral-common installed',
    'vocab.json': 'with merges.txt beside it',
}
OPEN_THOUGHT = re.compile(r'<(think|thinking|thought|reason|reasoning)>(?!.*</\1>)', re.DOTALL)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A fast Hugging Face tokenizer, and the four things the project asks of one."""

    hf: Any  # transformers.PreTrainedTokenizerFast
    ends: tuple[int, ...]  # tokens that end a response
    vocab: int | None = None  # V, rows of the embedding, of which each token is one; None: not known

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` from a directory, and what the files beside it say. No code of the checkpoint is run.

        A response ends with any token that one of these files calls the end. Raises `Mistake` where there is no
        tokenizer, where its file is torn, or where a control token has no row in the embedding.
        """
        folder = Path(folder)
        said = {
            name: foreign.read_json(folder / name) if (folder / name).is_file() else {}
            for name in ('generation_config.json', 'config.json', 'tokenizer_config.json')
        }
        hf, ends = _read(folder, said.pop('tokenizer_config.json')), []
        for name, raw in said.items():
            for end in _listed(raw.get('eos_token_id')):
                if type(end) is not int or not 0 <= end < len(hf):
                    raise Mistake(f'{folder / name}: eos_token_id = {end!r} is no token of its tokenizer, of {len(hf)}')
                if end not in hf.added_tokens_decoder:
                    text = hf.decode([end])
                    log.say_once(
                        f'{folder / name}: eos_token_id = {end} is {text!r}, a piece of text: responses end at it'
                    )
                ends.append(end)
        if hf.eos_token is not None and hf.eos_token not in hf.get_vocab():  # '', which would be the unknown token
            raise Mistake(f'{folder}: eos_token = {hf.eos_token!r} is no token of its tokenizer')
        ends += _listed(hf.eos_token_id)
        if not ends:
            raise Mistake(
                f'{folder}: the tokenizer names no end-of-sequence token; set eos_token in tokenizer_config.json'
            )
        config = said['config.json']
        text = config.get('text_config')  # of a model of images and text
        vocab = (text if isinstance(text, dict) else config).get('vocab_size')
        found = cls(hf, tuple(ends), vocab if type(vocab) is int else None)
        found = replace(found, ends=tuple(dict.fromkeys([*ends, *_listed(found.closes)])))
        found._check_rows(folder)
        return found

    def _check_rows(self, folder: Path) -> None:
        """Raises `Mistake` for a token without a row in the embedding that ends, begins or pads a text, or that the chat
        template writes. Says where that leaves the answer inside of a thought.
        """
        self._with_rows([[*self.ends, self.eos, self.pad, *self.start]])
        for roles in ROLES if self.hf.chat_template else ():
            try:
                around = self._around(roles)
            except Mistake:  # of a template that fails, which is raised where it is needed
                continue
            self._rows(around)
            if thought := OPEN_THOUGHT.search(around[-1]) if roles == ('user',) else None:
                log.say_once(
                    f'{folder}: its chat template opens {thought[0]} before the answer and does not close it; verdicts and '
                    'responses are read inside of it'
                )

    def _with_rows(self, rows: list[list[int]]) -> list[list[int]]:
        """The rows. Raises `Mistake` for a token that the embedding has no row for, which JAX would read as its last."""
        if self.vocab is not None and (worst := max(map(max, filter(None, rows)), default=0)) >= self.vocab:
            raise Mistake(
                f'{self.hf.name_or_path}: {self.hf.convert_ids_to_tokens(worst)!r} is token {worst}, but the embedding has '
                f'{self.vocab} rows (vocab_size in config.json); the tokenizer is of another model, or was given tokens '
                'that the model was not (resize_token_embeddings)'
            )
        return rows

    @property
    def eos(self) -> int:
        """The token we write at the end of a response in training."""
        return self.ends[0] if self.hf.eos_token_id is None else int(self.hf.eos_token_id)

    @property
    def pad(self) -> int:
        """The token that fills rows. It is always masked, so where a checkpoint has none its end token serves."""
        return int(self.hf.pad_token_id) if self.hf.pad_token_id is not None else self.eos

    @cached_property
    def start(self) -> tuple[int, ...]:
        """Tokens that the checkpoint wants before any text: `<bos>` for most Llamas, none for the micro world.

        They are what stands before the text, not behind it, as some checkpoints begin a text with the token that ends it.
        """
        text, whole = self._plain(PROBE), self.hf(PROBE, add_special_tokens=True)['input_ids']
        at = next((i for i in range(len(whole)) if whole[i : i + len(text)] == text), None)
        if at is None:
            raise Mistake(f'{self.hf.name_or_path}: its tokenizer makes other tokens of a text that stands by itself')
        return tuple(whole[:at])

    @cached_property
    def turn(self) -> tuple[str, str] | None:
        """What a chat checkpoint wants before a user's message, and behind it, up to where its own turn begins.

        None for a checkpoint without a chat template.
        """
        return tuple(chat.between(self.hf, ['user'])) if self.hf.chat_template else None

    @cached_property
    def closes(self) -> int | None:
        """The control token that ends a chat checkpoint's own turn. None without a template, or without such a token."""
        if not self.hf.chat_template:
            return None
        answer = 'the answer goes here'
        try:
            text = chat.render(self.hf, [('user', 'what'), ('assistant', answer)], ask=False)
        except Mistake:  # which `turn` raises where it is needed
            return None
        row = self.encode([text.rpartition(answer)[2].lstrip()], control=True, behind=True)[0]
        return row[0] if row and row[0] in self.hf.all_special_ids + self._control else None

    # What a policy reads and writes

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts, with what the checkpoint wants before any text.

        A chat checkpoint reads a dialogue (`chat.turns`) in its template; what was said in it is data. Raises `Mistake`
        where the template fails.
        """
        chats = {b: found for b, text in enumerate(texts) if (found := self._chat(text))}
        plain = [b for b in range(len(texts)) if b not in chats]
        rows = {b: [*self.start, *row] for b, row in zip(plain, self.encode([texts[b] for b in plain]))}
        each = iter(self.encode([one for _, said in chats.values() for one in said], behind=True))
        for b, (around, _) in chats.items():
            first, *others = self._rows(around)
            row = first + [i for other in others for i in (*next(each), *other)]
            rows[b] = row if tuple(row[: len(self.start)]) == self.start else [*self.start, *row]
        return [rows[b] for b in range(len(texts))]

    def responses(self, prompts: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """Tokens of the response to each prompt, the end token last.

        A space goes before a completion. In a dialogue of a chat checkpoint it is what the template has there, and the
        end is the token that ends a turn.
        """
        chats = [self._chat(prompt) is not None for prompt in prompts]
        said = [
            self._lead + text.strip() if chat else f' {text.strip()}'.rstrip()
            for text, chat in zip(texts, chats, strict=True)
        ]
        ends = [self.eos if self.closes is None or not chat else self.closes for chat in chats]
        return [[*row, end] for row, end in zip(self.encode(said, behind=True), ends)]

    def _chat(self, prompt: str) -> tuple[tuple[str, ...], list[str]] | None:
        """What the chat template puts round the turns of a dialogue, and what was said in them, with the space before it,
        as tokenizers join the two. The system speaks with the user where the template knows no system. None for what is
        no dialogue, and where there is no template.
        """
        turns = chat.turns(prompt) if self.hf.chat_template else None
        if turns is None:
            return None
        if turns[0][0] == 'system' and not self._system:
            (_, system), (role, content), *others = turns
            turns = [(role, f'{system}\n\n{content}'), *others]
        *before, last = self._around(tuple(role for role, _ in turns))
        said = [' ' * part.endswith(' ') + content for part, (_, content) in zip(before, turns)]
        return (*(part.removesuffix(' ') for part in before), last), said

    @cached_property
    def _system(self) -> bool:
        """Whether the chat template knows a system's message, which some refuse, pass over, or put before the last turn."""
        try:
            return bool(self._around(('system', 'user', 'assistant', 'user')))
        except Mistake:
            return False

    @cached_property
    def _lead(self) -> str:
        """White space that the chat template has before an answer, behind what asks for one."""
        asks, answered = self._around(('user',))[-1], self._around(('user', 'assistant'))[1]
        lead = answered.removeprefix(asks)
        return lead if lead.isspace() else ''

    @cached_property
    def _around(self) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
        """`chat.between` of roles, remembered."""
        return cache(lambda roles: tuple(chat.between(self.hf, roles)))

    @cached_property
    def _rows(self) -> Callable[[tuple[str, ...]], list[list[int]]]:
        """Tokens of what stands round turns, remembered."""
        return cache(
            lambda parts: self.encode(parts[:1], control=True) + self.encode(parts[1:], control=True, behind=True)
        )

    @cached_property
    def _control(self) -> list[int]:
        """Added tokens that stand for structure, called special or not: `</s>`, `<think>`. Not those of white space, which
        some tokenizers add for code.
        """
        return [i for i, token in self.hf.added_tokens_decoder.items() if token.special or token.content.strip()]

    @cached_property
    def _data(self) -> Any:
        """What encodes text that is data: to it all control tokens are special, and none is parsed."""
        raw = json.loads(self.hf.backend_tokenizer.to_str()) | {'truncation': None, 'padding': None}
        for token in raw['added_tokens']:
            token['special'] = token['id'] in self._control
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(raw))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def encode(self, texts: Sequence[str], *, control: bool = False, behind: bool = False) -> list[list[int]]:
        """Tokens of plain text, one list each.

        Args:
          control: the text is our own; otherwise '<eos>' in it is five characters, not the control token.
          behind: the text goes on from other text, so it does not get the space that some tokenizers (Llama 2's) put
            before whatever they are given.

        Raises `Mistake` for a token that the embedding has no row for.
        """
        if not texts:
            return []
        # Half a surrogate pair, as a cut string may hold, is no character; it becomes U+FFFD.
        whole = [text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for text in texts]

        def encode(texts: list[str]) -> list[list[int]]:
            if control or all(self.hf.added_tokens_decoder[i].special for i in self._control):
                split = not control  # not verbose: how long a text may be is not the tokenizer's to say
                found = self.hf(texts, add_special_tokens=False, split_special_tokens=split, verbose=False)
                return self._with_rows(found['input_ids'])
            return self._with_rows([row.ids for row in self._data.encode_batch(texts, add_special_tokens=False)])

        if not behind or not self._prepends:
            return encode(whole)
        # Behind a mark that joins to nothing the space stands before the mark; both are cut off again.
        marks = ['=' if text.startswith('\n') else '\n' for text in whole]
        cut = {mark: len(self._plain(mark)) for mark in set(marks)}
        return [row[cut[mark] :] for mark, row in zip(marks, encode([m + text for m, text in zip(marks, whole)]))]

    def _plain(self, text: str) -> list[int]:
        return self.hf(text, add_special_tokens=False)['input_ids']

    @cached_property
    def _prepends(self) -> bool:
        return self._plain('\n1') != self._plain('\n') + self._plain('1')

    @cached_property
    def _silent(self) -> set[int]:
        """Control tokens that are no part of a text."""
        return {*self.hf.all_special_ids, *(i for i, token in self.hf.added_tokens_decoder.items() if token.special)}

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of each row, control tokens left out."""
        if not len(rows):
            return []
        # Left out here: some versions of tokenizers keep a control token in the text that is to be normalized.
        kept = [[int(i) for i in row if i not in self._silent] for row in rows]
        return self.hf.batch_decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def allowed(self, vocab: int) -> np.ndarray:
        """(V,) bool: True for tokens that a policy may sample.

        These are all but padded rows of the embedding and control tokens; a control token that ends a response is one.
        """
        allowed_V = np.arange(vocab) < len(self.hf)
        allowed_V[[i for i in {*self._control, *self.hf.all_special_ids} if i < vocab]] = False
        allowed_V[[i for i in self.ends if i < vocab]] = True
        return allowed_V

    def stops(self, vocab: int) -> np.ndarray:
        """(V,) bool: True for tokens that end a response."""
        return np.isin(np.arange(vocab), self.ends)


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [] if said is None else [said]


def _read(folder: Path, named: dict[str, Any]) -> Any:
    """The tokenizer of a directory whose tokenizer_config.json is `named`, under the class that this names. Where that
    makes another tokenizer of tokenizer.json than the file says, it is read as the file has it.
    """
    from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

    file = folder / 'tokenizer.json'
    if not file.is_file():
        slow = next((name for name in SLOW if (folder / name).is_file()), None)
        what = f'; only fast tokenizers are read{foreign.instead(folder)}'
        if slow:
            convert = 'AutoTokenizer.from_pretrained(folder).save_pretrained(folder)'
            what = f', but {slow}, of which transformers makes one ({SLOW[slow]}): {convert}'
        raise Mistake(f'{folder}: no tokenizer.json here{what}')
    mapped = named.get('auto_map')
    if code := mapped.get('AutoTokenizer') if isinstance(mapped, dict) else mapped:
        names = ', '.join(str(name) for name in _listed(code) if name)
        raise Mistake(
            f'{folder}: its tokenizer is code of its repository ({names}), which is never run; if tokenizer.json says all '
            'that it does, take auto_map out of tokenizer_config.json'
        )
    if not isinstance(longest := named.get('model_max_length'), int | float | None):
        raise Mistake(f'{folder / "tokenizer_config.json"}: model_max_length = {longest!r:.80} is no number')
    try:
        raw = tokenizers.Tokenizer.from_file(str(file))
        # An empty config: the class is that of tokenizer_config.json, whatever the kind of model.
        hf = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig(), trust_remote_code=False)
    except Exception as error:  # a torn file, of which the tokenizers library tells with a bare Exception
        wrong = (foreign.disguise(path) for path in (file, folder / 'tokenizer_config.json') if path.is_file())
        reason = next(filter(None, wrong), None) or str(error).split('\n')[0][:300] or type(error).__name__
        raise Mistake(f'{folder}: its tokenizer cannot be read ({reason}); fetch the checkpoint again') from error
    raw.no_truncation(), raw.no_padding()
    # Of a space at the beginning some classes make less, and of letters in pieces another letter.
    probes = [PROBE, f' \u2581e\u0301 \ufb01 {PROBE}  ']
    rows = [row.ids for row in raw.encode_batch(probes, add_special_tokens=False)]
    wanted = rows, raw.decode(rows[0], skip_special_tokens=False)

    def differs(hf: Any) -> bool:
        text = hf.decode(rows[0], clean_up_tokenization_spaces=False)
        return (hf(probes, add_special_tokens=False, verbose=False)['input_ids'], text) != wanted

    if differs(hf):
        direct = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
        what = f'{folder}: {type(hf).__name__} of transformers makes other tokens of a text than tokenizer.json does'
        if differs(direct):
            raise Mistake(f'{what}; try another version of transformers')
        log.say_once(f'{what}; it is read as the file has it')
        return direct
    return hf


def pad_left(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """`(token_BT, valid_BT)` of T = length, padding first. Raises ValueError for a row that does not fit."""
    token_BT, valid_BT = pad_right([row[::-1] for row in rows], length, pad)
    return token_BT[:, ::-1].copy(), valid_BT[:, ::-1].copy()


def pad_right(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """`(token_BT, valid_BT)` of T = length, padding last. Raises ValueError for a row that does not fit."""
    token_BT = np.full((len(rows), length), pad, np.int32)
    valid_BT = np.zeros((len(rows), length), bool)
    for b, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(f'row {b} has {len(row)} tokens, more than {length}')
        token_BT[b, : len(row)] = row
        valid_BT[b, : len(row)] = True
    return token_BT, valid_BT
