"""Text to tokens and back, safely: text of users and policies is data, so control tokens are never parsed in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rlaif_jax.config import Mistake


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A fast Hugging Face tokenizer, and the four things the project asks of one."""

    hf: Any  # transformers.PreTrainedTokenizerFast
    ends: tuple[int, ...]  # tokens that end a response

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read `tokenizer.json` from a directory. Raises `Mistake` where there is none."""
        import json

        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        folder = Path(folder)
        if not (folder / 'tokenizer.json').exists():
            raise Mistake(f'{folder}: no tokenizer.json here; only fast tokenizers are read')
        named = folder / 'tokenizer_config.json'
        # The class named by the checkpoint where there is one; AutoTokenizer never runs the repository's code unless
        # told to.
        generation = folder / 'generation_config.json'
        try:
            hf = (
                AutoTokenizer.from_pretrained(folder)
                if named.exists()
                else PreTrainedTokenizerFast(tokenizer_file=str(folder / 'tokenizer.json'))
            )
            ends = json.loads(generation.read_text()).get('eos_token_id') if generation.exists() else None
        except Exception as error:  # a torn file, of which the tokenizers library tells with a bare Exception
            reason = str(error).split('\n')[0][:300]
            raise Mistake(f'{folder}: its tokenizer cannot be read ({reason}); fetch the checkpoint again') from error
        ends = hf.eos_token_id if ends is None else ends
        if ends is None:
            raise Mistake(
                f'{folder}: the tokenizer names no end-of-sequence token; set eos_token in tokenizer_config.json'
            )
        return cls(hf, tuple(ends) if isinstance(ends, list) else (int(ends),))

    @property
    def eos(self) -> int:
        """The token we write at the end of a response in training."""
        return self.ends[0] if self.hf.eos_token_id is None else int(self.hf.eos_token_id)

    @property
    def pad(self) -> int:
        """Fills rows and is always masked, so a checkpoint without a pad token needs none: its end token serves."""
        return int(self.hf.pad_token_id) if self.hf.pad_token_id is not None else self.eos

    @cached_property
    def start(self) -> tuple[int, ...]:
        """What the checkpoint wants before any text: `<bos>` for most Llamas, nothing for the micro world."""
        return tuple(i for i in self.hf('', add_special_tokens=True)['input_ids'] if i not in self.ends)

    @cached_property
    def turn(self) -> tuple[str, str] | None:
        """What a chat checkpoint wants before and after a user's message, up to where its own turn begins; None for a
        checkpoint without a chat template.
        """
        if not self.hf.chat_template:
            return None
        mark = 'the message goes here'
        # Llama 3 tells the date, by default today's: a label must not depend on when it is made.
        how = {'tokenize': False, 'add_generation_prompt': True, 'enable_thinking': False, 'date_string': '26 Jul 2024'}
        text = self.hf.apply_chat_template([{'role': 'user', 'content': mark}], **how)
        before, _, after = text.partition(mark)
        return before, after

    def encode(self, texts: Sequence[str], *, control: bool = False, behind: bool = False) -> list[list[int]]:
        """Tokens of plain text, one list each.

        Args:
          control: the text is our own; otherwise '<eos>' in it is five characters, not the control token.
          behind: the text goes on from other text, so it does not get the space that some tokenizers (Llama 2's) put
            before whatever they are given.
        """
        if not texts:
            return []
        # Half a surrogate pair, as a cut string may hold, is no character; it becomes U+FFFD.
        whole = [text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for text in texts]
        encode = lambda texts: self.hf(texts, add_special_tokens=False, split_special_tokens=not control)['input_ids']  # noqa: E731
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

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Text of each row, control tokens left out."""
        if not len(rows):
            return []
        return self.hf.batch_decode(
            [list(map(int, row)) for row in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def allowed(self, vocab: int) -> np.ndarray:
        """(V,) bool: what a policy may sample. Not padded rows of the embedding, not control tokens, except those that
        end a response.
        """
        allowed_V = np.arange(vocab) < len(self.hf)
        control = {i for i, token in self.hf.added_tokens_decoder.items() if token.special} | set(
            self.hf.all_special_ids
        )
        allowed_V[[i for i in control if i < vocab]] = False
        allowed_V[list(self.ends)] = True
        return allowed_V

    def stops(self, vocab: int) -> np.ndarray:
        """(V,) bool: True for tokens that end a response."""
        return np.isin(np.arange(vocab), self.ends)


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
