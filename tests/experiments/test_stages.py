"""Laws of stages: one that is being made is waited for, and what is learned from chooses, too."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import arms, find, stages
from experiments.policies import policies
from experiments.scales import scale
from rlaif_jax.config import Mistake, bind
from rlaif_jax.data import files, loader
from rlaif_jax.data.records import Pair, Prompt

MICRO = scale('micro')


@pytest.mark.parametrize('name', [name for name, arm in arms.ARMS.items() if arm.feedback != 'ratings'])
def test_preferences_of_the_kind_that_is_learned_choose_among_checkpoints(name, tmp_path, monkeypatch):
    """Votes where a reward model learns from votes, else labels of the same labeler: RLAIF needs no vote of people."""
    (one,) = policies(MICRO, 'summarization', 0, name).learners()
    made, seen = one.policy.rewarded, {}
    monkeypatch.setattr(stages.Supervised, 'run', lambda *_, **__: None)
    monkeypatch.setattr(stages.Labelled, 'run', lambda self, *_: [Pair(Prompt('', self.split), '', '', 0.7)] * 2)
    monkeypatch.setattr(stages.reward_model, 'run', lambda *given, **more: seen.update(held_out=given[4], **more))
    monkeypatch.setattr(stages.reward_model, 'load', lambda *_, **__: None)
    made.run(tmp_path, None)
    votes = loader.pairs('micro_tldr', 'summarization', 'validation', MICRO.tldr.held_out)
    if arms.ARMS[name].votes:
        assert (seen['held_out'], seen['votes'], made.choosing) == (votes, [], None)
    else:
        assert [pair.prompt.id for pair in seen['held_out']] == ['validation'] * 2 and seen['votes'] == votes
        asked = replace(made.choosing, split='train', pairs=made.ai.pairs)
        assert asked == made.ai and made.choosing.pairs == MICRO.tldr.held_out
    of = {line.of for line in made.lines(tmp_path) if line.name == 'labels'}
    assert ('of validation pairs' in of) == (not arms.ARMS[name].votes)


def test_who_needs_a_stage_that_is_being_made_waits_and_finds_it(tmp_path, capsys):
    made = []

    def make(folder: Path) -> dict:
        made.append(folder)
        time.sleep(0.3)
        return {'figure': len(made)}

    with ThreadPoolExecutor(2) as both:
        results = list(both.map(lambda _: stages.once(tmp_path / 'sft-0', MICRO.sft, make), range(2)))
    assert len(made) == 1 and results == [{'figure': 1}] * 2
    assert 'waiting for it' in capsys.readouterr().out


def test_sft_imitates_the_references_that_there_are(tmp_path):
    """And none of them: not an empty one."""
    said = lambda role, text: {'role': role, 'content': text}  # noqa: E731
    rows = [{'prompt': [said('user', f'question {i}')], 'completion': [said('assistant', 'so')]} for i in range(4)]
    lacking = [{'prompt': row['prompt'], 'completion': [said('assistant', ' ')]} for row in rows]
    for name, found in (('all', rows), ('some', rows[:3] + lacking[3:]), ('none', lacking)):
        (tmp_path / name).mkdir()
        files.write_rows(tmp_path / name / 'train.jsonl', found)

    def start(name):
        changes = {'data.source': str(tmp_path / name), 'sft.steps': 1, 'evaluation.judge': 'micro_l'}
        return arms.start(bind(find('helpful_direct')(MICRO), changes))

    for name, count in (('all', 4), ('some', 3)):
        stage = start(name)
        found = stage.referenced(loader.source(stage.source, 'train', 9, stage.task))
        assert [p.text for p in found] == [f'\n\nHuman: question {i}\n\nAssistant:' for i in range(count)]
        assert [one.name for one in stage.lines(tmp_path)] == ['sft']
    with pytest.raises(Mistake, match='/none: .* 4 prompts .*"completion".*sft=None'):
        start('none').lines(tmp_path)
    assert bind(start('none'), {'sft': None}).lines(tmp_path) == []
