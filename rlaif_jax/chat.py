"""Dialogues: how a prompt's text tells one, and how a chat checkpoint wants it, by the template that came with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rlaif_jax.config import Mistake

SPEAKERS = {'user': '\n\nHuman:', 'assistant': '\n\nAssistant:'}  # as Anthropic's dialogues are written
ROLES = {marker: role for role, marker in SPEAKERS.items()}
MARKERS = re.compile(f'({"|".join(SPEAKERS.values())})')
# Some chat templates tell the date, by default today's: a label must not depend on when it is made.
DATE = '{% macro strftime_now(form) %}26 July 2024{% endmacro %}'
LONGEST = 10**6  # characters that a template may write around short messages

Turn = tuple[str, str]  # role, which is user, assistant or system, and what was said


def lines(text: str) -> str:
    """The text with `\\n` for every end of a line."""
    return text.replace('\r\n', '\n').replace('\r', '\n')


def dialogue(text: str) -> str:
    """A dialogue in the form in which its turns are found; any other text as it is.

    Lines end in `\\n`, and a text that begins with `Human:`, as one that was stripped does, gets `\\n\\n` before it.
    """
    found = lines(text)
    found = '\n\n' + found.lstrip('\n') if re.match('\n?Human:', found) else found
    return found if SPEAKERS['assistant'] in found else text


def turns(text: str) -> list[Turn] | None:
    """The turns of a prompt that is a dialogue, `\\n\\nHuman: …\\n\\nAssistant:`, up to the one that is asked for.

    None for any other prompt. What stands before the first turn is the system's. Roles alternate: two turns in a row of
    one role become one.
    """
    system, *rest = MARKERS.split(dialogue(text).rstrip())
    if not rest or rest[0] != SPEAKERS['user'] or rest[-2:] != [SPEAKERS['assistant'], '']:
        return None
    found = [('system', system.strip())] if system.strip() else []
    for marker, said in zip(rest[:-2:2], map(str.strip, rest[1::2])):
        role = ROLES[marker]
        if found and found[-1][0] == role:
            found[-1] = role, f'{found[-1][1]}\n\n{said}'
        else:
            found.append((role, said))
    return found


def account(name: str, template: bool, prompts: Iterable[str], asked: bool = False) -> str:
    """What a run says of how a checkpoint reads its prompts. '' without a template and without dialogues.

    It says how many are dialogues, which go through its chat template, how many are continued as plain text, and why.
    asked: the checkpoint is a labeler. It is asked about prompts in a message of our own, always in its template.
    """
    prompts = list(prompts)
    plain = [text for text in prompts if turns(text) is None]
    count, dialogues = len(prompts), len(prompts) - len(plain)
    if not dialogues and not template:
        return ''
    if not template:
        told = f'all {count} prompts are continued as plain text, {dialogues} dialogues among them'
        return f'{name} has no chat template: {told}'
    if asked:
        return f'{name} is asked about all {count} prompts in its chat template'
    if not plain:
        return f'{name}: all {count} prompts are dialogues, in its chat template'
    return (
        f'{name}: {dialogues} of {count} prompts are dialogues, in its chat template; the others have no '
        "'\\n\\nHuman: …\\n\\nAssistant:', which a file's messages become where the task is helpful or harmless; they are "
        f'continued as plain text, the first {plain[0][:60]!r}'
    )


def render(hf: Any, messages: Sequence[Turn], ask: bool = True) -> str:
    """Messages in the template of a `transformers` tokenizer; with `ask` up to where the checkpoint's own turn begins.

    A template is code of a stranger. jinja's sandbox keeps it from all but its text. Raises `Mistake` where it fails, or
    does not come to an end.
    """
    try:
        with _steps():
            text = hf.apply_chat_template(
                [{'role': role, 'content': content} for role, content in messages],
                chat_template=DATE + hf.get_chat_template(), tokenize=False, add_generation_prompt=ask,
                enable_thinking=False, date_string='26 Jul 2024',
            )  # fmt: skip
        if len(text) > LONGEST:
            raise RuntimeError(f'it writes {len(text):,} characters')
        return text
    except Exception as error:  # of jinja, or raised by the template
        reason = str(error).split('\n')[0][:200]
        raise Mistake(f'{hf.name_or_path}: its chat template cannot be filled in ({reason})') from error


@contextmanager
def _steps(most: int = 10**6) -> Iterator[None]:
    """Within it a template of jinja raises an error once it has run so many lines, as it does in a moment."""
    left, before = most, sys.gettrace()

    def count(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code.co_filename != '<template>':
            return None
        left -= 1
        if left < 0:
            raise RuntimeError(f'it runs on after {most:,} steps')
        return count

    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def between(hf: Any, roles: Sequence[str]) -> list[str]:
    """What the template puts before, between and behind the messages of these roles, one text more than there are roles.

    Raises `Mistake` where it fails, or does not show each message once, in order.
    """
    # With what a template would have to write otherwise, for a page or as JSON: it may not.
    marks = [f'<the> "message" {i} & what it\'s about' for i in range(len(roles))]
    text, parts = render(hf, list(zip(roles, marks))), []
    if wrong := [text.count(mark) for mark in marks if text.count(mark) != 1]:
        raise Mistake(f'{hf.name_or_path}: its chat template shows a message {wrong[0]} times, where once is wanted')
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise Mistake(f'{hf.name_or_path}: its chat template does not show messages in their order')
        parts.append(before)
    return [*parts, text]
