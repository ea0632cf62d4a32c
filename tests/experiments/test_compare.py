"""Laws of comparing finished policies, and responses that are there: all get the same prompts, and people may judge."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import pytest

from experiments import compare, find, judging
from experiments.scales import scale
from rlaif_jax.config import Mistake, bind
from rlaif_jax.data import files, loader
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation import rankings, responses
from rlaif_jax.micro import tasks
from rlaif_jax.models import hf, transformer
from rlaif_jax.models.hf import LM

MICRO = scale('micro')


@pytest.mark.parametrize(
    'policies, told',
    [
        ((), r'policies="\['),
        (('micro_xs',), r'policies="\[.* two '),
        (('micro_xs', 'micro_xs'), 'micro_xs, micro_xs.* names='),
    ],
)
def test_what_cannot_be_compared_is_said(policies, told, tmp_path):
    with pytest.raises(Mistake, match=told):
        bind(find('compare')(MICRO), {'policies': policies}).lines(tmp_path)


def test_raters_of_the_simulated_world_do_not_judge_other_prompts(tmp_path):
    files.write_rows(tmp_path / 'prompts.jsonl', [{'prompt': 'one'}, {'prompt': 'two'}])
    cfg = bind(
        find('compare')(MICRO), {'policies': ('micro_xs', 'micro_s'), 'prompts': str(tmp_path / 'prompts.jsonl')}
    )
    with pytest.raises(Mistake, match=r"evaluation\.judge = 'raters' .*/prompts\.jsonl"):
        cfg.lines(tmp_path)
    judged = bind(cfg, {'evaluation.judge': 'micro_l'})
    assert judged.lines(tmp_path)[0].steps == 2


def test_people_rank_responses_that_are_there(tmp_path, capsys):
    """A run's responses, and rankings of them: no policy writes, lengths are those of what people saw."""
    cfg = bind(find('compare')(MICRO), {'data.test': 64, 'responses': str(tmp_path / 'responses.jsonl')})
    prompts = loader.source('micro_tldr', 'test', 64, 'summarization')[:40]
    texts = {'long': [' far too long a summary'] * 40, 'short': [' short'] * 40}
    responses.write(tmp_path / 'responses.jsonl', prompts, texts)
    best = ['long' if i % 4 else 'short' for i in range(40)]
    rows = [
        {'prompt_id': prompt.id, 'rater': 'ann', 'ranking': [name, *({'long', 'short'} - {name})]}
        for prompt, name in zip(prompts, best)
    ]
    files.write_rows(tmp_path / 'rankings.jsonl', rows)
    ranked = bind(cfg, {'rankings': str(tmp_path / 'rankings.jsonl')})
    (stage,) = ranked.lines(tmp_path / 'run')
    assert stage.steps == 40 and stage.models == {}
    judged = ranked.run(tmp_path / 'run')['comparisons']['long vs short']
    assert list(judged) == ['people', 'simulated oracle']  # what is true of the prompts is known by their ids
    told = capsys.readouterr().out.splitlines()
    said = [line for line in told if 'people:' in line or line.startswith('40 test prompts')]
    assert said and not any(line.startswith('SIMULATED') for line in said)  # people are not
    assert any('40 test prompts of the SIMULATED world, ranked by people' in line for line in said)
    assert judged['people']['raw']['value'] == 0.75 and judged['people']['n'] == 40
    assert (judged['people']['mean_length_a'], judged['people']['mean_length_b']) == (23, 6)
    assert responses.read(tmp_path / 'run' / 'responses.jsonl') == responses.read(tmp_path / 'responses.jsonl')
    # Without rankings, the judge reads the same texts.
    assert list(cfg.run(tmp_path / 'other')['comparisons']['long vs short']) == ['raters', 'oracle']

    # Of some of them only: the others are not there at all.
    files.write_rows(tmp_path / 'rankings.jsonl', rows[:12])
    some = ranked.run(tmp_path / 'some')['comparisons']['long vs short']
    assert some['people']['n'] == some['simulated oracle']['n'] == 12 and some['people']['unscorable'] == 0
    for wrong, told in (
        ({'ranking': ['long', 'shorrt']}, r"/rankings\.jsonl:2: .*'shorrt'.*'short'"),
        (
            {'prompt_id': 'micro/tst/1'},
            r"/rankings\.jsonl:2: .*'micro/tst/1'.*'micro/test/1'",
        ),
    ):
        files.write_rows(tmp_path / 'rankings.jsonl', [rows[0], rows[1] | wrong, *rows[2:]])
        with pytest.raises(Mistake, match=told):
            ranked.lines(tmp_path / 'run')
    texts = {'prompt': 'anything', 'a': ' one', 'b': ' two'}
    files.write_rows(tmp_path / 'responses.jsonl', [texts])
    with pytest.raises(Mistake, match=r"evaluation\.judge = 'raters' .*/responses\.jsonl.*rankings="):
        cfg.lines(tmp_path / 'run')
    for changes, told in (
        ({'policies': ('micro_xs', 'micro_s')}, 'responses .*policies and prompts'),
        ({'responses': '', 'rankings': 'r.jsonl'}, 'rankings .*responses='),
    ):
        with pytest.raises(Mistake, match=told):
            bind(cfg, changes)


def test_prompts_are_named_as_in_rankings(tmp_path):
    """By any id, 0 too, else by their texts."""
    rows = [{'prompt_id': i, 'prompt': f'p{i}', 'a': 'one', 'b': 'two'} for i in (0, 1, None)]
    files.write_rows(tmp_path / 'r.jsonl', rows)
    prompts, _ = responses.read(tmp_path / 'r.jsonl')
    assert [prompt.id for prompt in prompts] == ['0', '1', 'pNone']
    files.write_rows(tmp_path / 'k.jsonl', [row | {'rater': 'ann', 'ranking': ['b', 'a']} for row in rows])
    assert rankings.judge(rankings.read(tmp_path / 'k.jsonl'), 'a', 'b')(prompts, [], []).tolist() == [0, 0, 0]


BESIDE = {
    'prompt_id': 3, 'id': 'x', 'generator': 'gpt', 'Model': 'm', 'annotator': 'ann', 'length': 7, 'score': 0.5,
    'tags': ['x'], 'meta': {'a': 'b'}, 'when': None,
}  # fmt: skip


def test_columns_beside_responses_are_no_policies_unless_they_are_named(tmp_path, capsys):
    rows = [{'prompt': f'p{i}', **BESIDE, 'prompt_id': i, 'b': 'two', 'a': 'one', 'source': 'same'} for i in range(3)]
    files.write_rows(tmp_path / 'r.jsonl', rows)
    told = []
    prompts, written = responses.read(tmp_path / 'r.jsonl', tell=told.append)
    assert written == {'b': ['two'] * 3, 'a': ['one'] * 3} and [prompt.id for prompt in prompts] == ['0', '1', '2']
    (line,) = told
    assert all(name in line for name in [*BESIDE, 'source', 'names=[…]'] if name != 'prompt_id')
    _, written = responses.read(tmp_path / 'r.jsonl', names=('a', 'generator'))
    assert written == {'a': ['one'] * 3, 'generator': ['gpt'] * 3}
    for wrong, near in (('generatr', 'generator'), ('score', 'source')):
        with pytest.raises(Mistake, match=rf"r\.jsonl: .*'{wrong}'.*'{near}'"):
            responses.read(tmp_path / 'r.jsonl', names=('a', wrong))
    files.write_rows(tmp_path / 'r.jsonl', [{'prompt': 'p', 'model': 'one', 'a': 'two'}])
    with pytest.raises(Mistake, match=r'r\.jsonl:1: .*names=\[…\].* model'):
        responses.read(tmp_path / 'r.jsonl')
    cfg = bind(find('compare')(MICRO), {'responses': str(tmp_path / 'r.jsonl'), 'names': ('a', 'model')})
    assert cfg.written()[2] == {'a': ['two'], 'model': ['one']}
    for name in ('model', 'Generator'):  # what is written is read back
        with pytest.raises(Mistake, match=rf"'{name}'.*names=\[…\]"):
            bind(find('compare')(MICRO), {'policies': ('micro_xs', 'micro_s'), 'names': ('a', name)}).named()


def test_responses_and_rankings_meet_by_one_key(tmp_path):
    """A key that stands twice is named with both lines; a prompt that is asked twice has two."""
    path = tmp_path / 'r.jsonl'
    say = {'prompt': 'p', 'a': 'one', 'b': 'two'}
    for first, second in ((7, 7.0), ('x', 'x')):
        files.write_rows(
            path, [say | {'prompt_id': first}, {'prompt': 'q', 'a': '', 'b': ''}, say | {'prompt_id': second}]
        )
        with pytest.raises(Mistake, match=rf"r\.jsonl:3: .*'{first}'.*/r\.jsonl:1\b"):
            responses.read(path)
    files.write_rows(path, [say, say | {'prompt': 'q', 'prompt_id': None}, say | {'a': 'other', 'prompt_id': math.nan}])
    prompts, written = responses.read(path)
    assert [prompt.id for prompt in prompts] == ['p#1', 'q', 'p#2'] and written['a'] == ['one', 'one', 'other']
    same = [Prompt('p', 'x'), Prompt('q', 'y'), Prompt('p', 'x')]
    responses.write(path, same, written)
    assert [(prompt.text, prompt.id) for prompt in responses.read(path)[0]] == [('p', 'x#1'), ('q', 'y'), ('p', 'x#2')]

    prompts = [Prompt('p', '1'), Prompt('p', '2'), Prompt('q', '3')]

    def ranked(*rows):
        files.write_rows(tmp_path / 'k.jsonl', [{'rater': 'ann', 'ranking': ['a', 'b'], **row} for row in rows])
        return rankings.read(tmp_path / 'k.jsonl', prompts=prompts).prompts

    assert ranked({'prompt_id': 1.0}, {'prompt': 'q'}, {'prompt_id': '2', 'prompt': 'p'}) == ('1', '3', '2')
    for rows, told in (
        (
            [{'prompt': 'q'}, {'prompt_id': 3}],
            r"k\.jsonl:2: .*'ann'.*/k\.jsonl:1$",
        ),
        ([{'prompt_id': 3, 'rater': 1}, {'prompt_id': 3, 'rater': 1.0}], r"k\.jsonl:2: .*'1'.*/k\.jsonl:1$"),
        ([{'prompt': 'p'}], r"k\.jsonl:1: .* '1', '2'"),
        ([{'prompt_id': 3, 'prompt': 'p'}], r"k\.jsonl:1: .*'3'.*'q'.*'p'"),
        ([{'prompt_id': 3, 'rater': math.nan}], r"k\.jsonl:1: no column 'rater'"),
    ):
        with pytest.raises(Mistake, match=told):
            ranked(*rows)
    files.write_rows(
        tmp_path / 'k.jsonl',
        [{'rater': 'ann', 'ranking': ['a', 'b'], **by} for by in ({'prompt': 'q'}, {'prompt_id': 3})],
    )
    with pytest.raises(Mistake, match="'3' .*id.* text"):
        rankings.judge(rankings.read(tmp_path / 'k.jsonl'), 'a', 'b')(prompts, [], [])


@pytest.mark.parametrize(
    'row, told',
    [
        ({'prompt': 'x', 'a': 'one'}, r"two policies.*\['prompt', 'a'\]"),
        ({'a': 'one', 'b': 'two'}, r""""prompt".*\['a', 'b'\]"""),
        ({'prompt': 'x', 'a': 'one', 'c': 'two'}, ' a, c.* a, b$'),
        ({'prompt': 'x', 'a': 'one', 'b': None}, " b .*text.* 'None'"),
    ],
)
def test_a_file_of_responses_that_is_none_is_refused(row, told, tmp_path):
    files.write_rows(tmp_path / 'r.jsonl', [{'prompt': 'p', 'a': 'one', 'b': 'two'}, row])
    with pytest.raises(Mistake, match=rf'r\.jsonl:2: .*{told}'):
        responses.read(tmp_path / 'r.jsonl')
    with pytest.raises(Mistake, match=r"'prompt'.*names=\[…\]"):
        responses.write(tmp_path / 'w.jsonl', [], {'prompt': [], 'a': []})


def test_all_policies_get_the_prompts_that_the_shortest_can_read(
    tmp_path, micro_tokenizer, random_params, monkeypatch, capsys
):
    sizes = transformer.Config(vocab=1152, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, max_length=512)
    for name, most in (('long', 512), ('short', 90), ('shorter', 80)):
        hf.save(LM(replace(sizes, max_length=most), random_params(sizes), micro_tokenizer, name), tmp_path / name)
    named = tuple(str(tmp_path / name) for name in ('long', 'short', 'shorter'))
    cfg = bind(
        find('compare')(MICRO), {'policies': named, 'max_new_tokens': 10, 'data.test': 32, 'evaluation.prompts': 32}
    )
    seen = {}

    def respond(lm: LM, prompts: list[Prompt], *_) -> list[str]:
        seen[lm.name], rng = prompts, random.Random(lm.name)
        return [tasks.candidate(prompt, rng) for prompt in prompts]

    monkeypatch.setattr(judging, 'respond', respond)
    result = cfg.run(tmp_path / 'run')
    before, (after, *others) = cfg.asked(), seen.values()
    assert list(seen) == list(named) and others == [after, after]
    lengths = [[len(row) for row in micro_tokenizer.encode([one.text for one in some])] for some in (before, after)]
    assert max(lengths[1]) <= 70
    assert [one == other for one, other in zip(before, after)] == [length <= 70 for length in lengths[0]]
    assert 0 < result['shortened'] == sum(length > 70 for length in lengths[0]) < 32
    told = capsys.readouterr().out
    assert f'{result["shortened"]} of 32 prompts ' in told
    # Three policies at once: so they are ranked, too.
    w = result['concordance']
    assert w['simulated'] and 1 / 3 < w['low'] < w['value'] < w['high'] < 1 and w['n'] == 32
    assert re.search(f'3 SIMULATED raters .*W {w["value"]:.2f}', told)
    assert cfg.fitted(before) == replace(cfg, policies=named[::-1]).fitted(before) == (after, result['shortened'])
    assert replace(cfg, policies=named[:1] * 2, names=('a', 'b')).fitted(before) == (before, 0)
    (other,), count = cfg.fitted([Prompt('no post ' * 80, 'x')])
    assert count == 1 and other.text.endswith('no post ' * 9) and len(micro_tokenizer.encode([other.text])[0]) <= 70
    with pytest.raises(Mistake, match='^shorter .*80 tokens.*max_new_tokens = 80'):
        replace(cfg, max_new_tokens=80).fitted(before)


def test_a_run_with_other_fields_is_named_where_the_plain_one_is_not_there(tmp_path):
    there = tmp_path / 'tldr_rlaif-micro-s0-1a2b3c'
    there.mkdir()
    (there / 'config.gin').write_text('', encoding='utf-8')
    with pytest.raises(Mistake, match='-s0: .*/tldr_rlaif-micro-s0-1a2b3c$'):
        compare.exported(str(tmp_path / 'tldr_rlaif-micro-s0'))
    cfg = bind(find('compare')(MICRO), {'responses': str(tmp_path / 'tldr_rlaif-micro-s0/responses.jsonl')})
    with pytest.raises(Mistake, match='-s0/responses.jsonl: .*/tldr_rlaif-micro-s0-1a2b3c/responses.jsonl$'):
        cfg.lines(tmp_path / 'run')


def test_a_run_that_is_not_finished_is_not_compared(tmp_path):
    (tmp_path / 'config.gin').write_text('', encoding='utf-8')
    with pytest.raises(Mistake, match=f'{tmp_path} .*not finished'):
        compare.exported(str(tmp_path))
    (tmp_path / 'result.json').write_text('{}', encoding='utf-8')
    with pytest.raises(Mistake, match=f'{tmp_path}/policies'):
        compare.exported(str(tmp_path))
    (tmp_path / 'export').mkdir()
    assert compare.exported(str(tmp_path)) == tmp_path / 'export'
    assert compare.exported('micro_xs') == 'micro_xs'


@pytest.mark.parametrize(
    'policies, names',
    [
        (('runs/a/export', 'runs/b/export/'), ['a', 'b']),
        (('runs/a', 'Qwen/Qwen3-4B'), ['a', 'Qwen3-4B']),
        (('a/policies/RLAIF/export', 'a/policies/RLHF'), ['RLAIF', 'RLHF']),
        (('seed0/policies/RLAIF', 'seed1/policies/RLAIF'), ['seed0', 'seed1']),
        (('micro_xs', 'micro_xs'), ['micro_xs', 'micro_xs']),  # nothing does
    ],
)
def test_policies_are_called_by_the_folders_that_tell_them_apart(policies, names):
    assert compare.called(policies) == names


def test_a_page_for_raters_judges_nothing_and_is_made_again_when_lost(tmp_path):
    files.write_rows(tmp_path / 'r.jsonl', [{'prompt': f'p{i}', 'a': 'one', 'b': 'two'} for i in range(3)])
    given = {'responses': str(tmp_path / 'r.jsonl'), 'rank_page': str(tmp_path / 'rank.html')}
    cfg = bind(find('compare')(MICRO), given)
    (line,) = cfg.lines(tmp_path / 'run')
    assert (line.steps, line.models, cfg.always) == (3, {}, True)
    assert cfg.run(tmp_path / 'run') | {'rank_page': ''} == {
        'rank_page': '',
        'prompts': 3,
        'policies': 2,
        'simulated': False,
    }
    html = (tmp_path / 'rank.html').read_text(encoding='utf-8')
    assert '"policies": ["a", "b"]' in html and 'SIMULATED' not in html
    prompts = loader.source('micro_tldr', 'test', 8, 'summarization')[:3]
    responses.write(tmp_path / 'r.jsonl', prompts, {'a': ['one'] * 3, 'b': ['two'] * 3})
    assert bind(cfg, {'data.test': 8}).run(tmp_path / 'run')['simulated'] is True
    assert 'SIMULATED' in (tmp_path / 'rank.html').read_text(encoding='utf-8')
    for changes in ({'rankings': 'k.jsonl'}, {'responses': ''}):
        with pytest.raises(Mistake, match='rank_page is for people who rank responses='):
            bind(cfg, changes)
