"""Reddit TL;DR: the posts with their authors' summaries, filtered by OpenAI, and people's comparisons of two summaries.

Both are of Stiennon et al. 2020 (arXiv 2009.01325), the posts of Syed et al. 2018. The paper trains policies on the posts
and reward models on the comparisons (§3.1). Rows keep their text as published, with leading spaces, empty summaries and
posts that come twice. Only half characters become U+FFFD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_jax.config import Mistake
from rlaif_jax.data import files
from rlaif_jax.data.published import HUB, Builder, Copy, require
from rlaif_jax.data.records import Pair, Prompt, share
from rlaif_jax.shortening import MARKS

OPENAI = 'https://openaipublic.blob.core.windows.net/summarize-from-feedback/'
CONFIDENT = 1, 2, 8, 9  # of 1 to 9: the raters were sure (§3.4)
ALIGNMENT = 0.15  # of the training comparisons, for measuring labelers (App. A)

_OF_STIENNON = {
    'HOMEPAGE': 'https://github.com/openai/summarize-from-feedback',
    'CITATION': 'Stiennon et al., Learning to summarize from human feedback, arXiv 2009.01325',
    'LICENCE': 'CC BY 4.0',
}


class Posts(Builder):
    """Posts and reference summaries. Splits: train 116,722, validation 6,447, test 6,553 rows."""

    name = 'tldr'
    ABOUT = 'Reddit posts with summaries of their authors'
    COPIES = (
        Copy(OPENAI + 'datasets/tldr_3_filtered', ('train.jsonl', 'valid.jsonl', 'test.jsonl')),
        Copy(
            HUB + 'trl-lib/tldr/resolve/main/data',
            tuple(f'{split}-00000-of-00001.parquet' for split in ('train', 'validation', 'test')),
            'trl-lib/tldr',
        ),
    )
    COUNTS = {'train': 116_722, 'validation': 6_447, 'test': 6_553}
    SPLITS = 'train', 'validation', 'test'
    FEATURES = {'post_id': str, 'subreddit': str, 'title': str, 'post': str, 'summary': str}
    HOMEPAGE, CITATION, LICENCE = _OF_STIENNON.values()

    def splits(self, published: str, example: dict[str, Any]) -> Sequence[str]:
        return (published,)

    def example(self, row: files.Row, where: str) -> dict[str, Any]:
        if 'prompt' in row:  # as TRL has it: the whole prompt, and a space before the summary
            require(row, ('prompt', 'completion'), where)
            summary = (row['completion'] or '').removeprefix(' ')
            return {'post_id': '', **parts(row['prompt'] or '', where), 'summary': summary}
        require(row, ('id', 'subreddit', 'title', 'post', 'summary'), where)
        return {'post_id': row['id'] or ''} | {name: row[name] or '' for name in (*self.FEATURES,)[1:]}


class Comparisons(Builder):
    """Two summaries of a post and which of them a person chose, with worker, batch, policies and confidence.

    Splits:
      train: 92,858 rows.
      validation: what OpenAI calls valid1, and chose its models on; 83,802 rows together with `test`.
      test: what OpenAI calls valid2, and kept for final figures.
      alignment: those of 15 % of train that have a confidence of 1, 2, 8 or 9. The paper measures labelers on such.

    The published files hold comparisons of news articles, too, which are left out.
    """

    name = 'tldr_comparisons'
    ABOUT = 'comparisons of two summaries of Reddit posts'
    COPIES = (
        Copy(
            OPENAI + 'dataset/comparisons',
            # In this order on the hub too, so that a row has the same number in either copy.
            tuple(f'batch{n}.json' for n in (3, 4, 5, *range(10, 21), 22, 6, 7, 8, 9)) + ('edit_b2_eval_test.json',),
        ),
        Copy(
            HUB + 'openai/summarize_from_feedback/resolve/refs%2Fconvert%2Fparquet/comparisons',
            ('train/0000.parquet', 'validation/0000.parquet'),
            'openai/summarize_from_feedback',
        ),
    )
    COUNTS = {'train': 92_858, 'validation': 83_802}
    SPLITS = 'train', 'validation', 'test', 'alignment'
    FEATURES = {
        'post_id': str, 'subreddit': str, 'title': str, 'post': str,
        'first': str, 'second': str, 'first_policy': str, 'second_policy': str,
        'choice': np.int32,  # 0: the first is better, 1: the second
        'confidence': np.int32,  # 1 to 9, 0 where it was not asked for
        'worker': str, 'batch': str, 'split': str,
    }  # fmt: skip
    HOMEPAGE, CITATION, LICENCE = _OF_STIENNON.values()

    def published(self, stem: str, row: files.Row) -> str:
        if 'cnndm' in (row.get('batch') or stem):
            return ''
        return 'train' if row.get('split') == 'train' else 'validation'

    def splits(self, published: str, example: dict[str, Any]) -> Sequence[str]:
        if published != 'train':
            return ('validation',) if example['split'] == 'valid1' else ('test',)
        text = (example['post_id'], example['first'], example['second'], example['worker'])
        sure = example['confidence'] in CONFIDENT
        return ('train', 'alignment') if sure and share('alignment', *text) < ALIGNMENT else ('train',)

    def example(self, row: files.Row, where: str) -> dict[str, Any]:
        require(row, ('info', 'summaries', 'choice', 'worker', 'batch', 'split'), where)
        info, summaries, choice, split = row['info'] or {}, row['summaries'] or (), row['choice'], row['split']
        require(info, ('subreddit', 'title', 'post'), f'{where}: info')
        if len(summaries) != 2 or choice not in (0, 1) or split not in ('train', 'valid1', 'valid2'):
            raise Mistake(
                f'{where}: wants two summaries, a choice of 0 or 1 and a split of train, valid1 or valid2; got '
                f'{len(summaries)}, {choice!r} and {split!r}'
            )
        (first, second), extra = summaries, row.get('extra') or {}
        return {
            'post_id': info.get('id') or '',
            **{name: info[name] or '' for name in ('subreddit', 'title', 'post')},
            'first': first['text'] or '',
            'second': second['text'] or '',
            'first_policy': first.get('policy') or '',
            'second_policy': second.get('policy') or '',
            'choice': choice,
            'confidence': int(extra.get('confidence') or 0),
            **{name: row[name] or '' for name in ('worker', 'batch', 'split')},
        }


# Rows as records


def prompt(row: Mapping[str, Any]) -> Prompt:
    """The prompt of a prepared row; of a post, with its reference."""
    texts = (row[name].decode() for name in ('subreddit', 'title', 'post'))
    return Prompt(prompt_text(*texts), row['id'].decode(), row.get('summary', b'').decode())


def pair(row: Mapping[str, Any]) -> Pair:
    """The two summaries of a prepared comparison, in the order in which they were published."""
    return Pair(prompt(row), row['first'].decode(), row['second'].decode(), 1.0 - int(row['choice']))


def confident(row: Mapping[str, Any]) -> bool:
    """Whether the person who compared was sure. Where nobody asked, the answer is no."""
    return int(row['confidence']) in CONFIDENT


# The prompt


def prompt_text(subreddit: str, title: str, post: str) -> str:
    """What the policy reads (arXiv 2009.01325, App. B.1). The summary follows it, after a space."""
    return ''.join(mark + text for mark, text in zip(MARKS, (subreddit, title, post, '')))


def parts(text: str, where: str = 'the prompt') -> dict[str, str]:
    """Subreddit, title and post of a prompt. Raises `Mistake` for a text that `prompt_text` does not make."""
    before, title_mark, post_mark, end = MARKS
    subreddit, found_title, rest = text.removeprefix(before).partition(title_mark)
    title, found_post, post = rest.partition(post_mark)
    if not (text.startswith(before) and found_title and found_post and post.endswith(end)):
        raise Mistake(f'{where}: not a TL;DR prompt, {MARKS[0]}…, TITLE: …, POST: …, TL;DR:')
    return {'subreddit': subreddit, 'title': title, 'post': post.removesuffix(end)}
