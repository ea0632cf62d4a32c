"""Laws of rankings: concordance is that of the textbooks, and votes between two policies are complementary."""

import json
import random
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from rlaif_jax.config import Mistake
from rlaif_jax.data.records import Prompt
from rlaif_jax.evaluation.rankings import by_scores, concordance, judge, kendall_w, raters, read, votes
from rlaif_jax.evaluation.versus import compare, win_rate
from rlaif_jax.micro import tasks
from rlaif_jax.micro.raters import probability, scores

RNG = np.random.default_rng(0)


def write(path, rows):
    path.write_text('\n'.join(json.dumps(row) for row in rows) + '\n', encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def rows():
    """40 prompts, three raters, of whom each leaves some out; four policies of which three are shown; some ties."""
    rng, rows = np.random.default_rng(1), []
    for i in range(40):
        shown = rng.permutation(['rl', 'sft', 'human', 'base'])[:3].tolist()
        for rater in ('ann', 'bob', 'eve'):
            if rng.random() < 0.8:
                a, b, c = rng.permutation(shown).tolist()
                tied = rng.random() < 0.2
                rows.append({'prompt_id': f'p{i}', 'rater': rater, 'ranking': [a, [b, c]] if tied else [a, b, c]})
    return rows


@pytest.mark.parametrize(('m', 'n'), [(2, 3), (3, 3), (3, 4), (7, 10)])
def test_w_is_the_mean_of_spearmans_correlations_put_between_0_and_1(m, n):
    rank_MN = np.array([RNG.permutation(n) for _ in range(m)])
    mean = np.corrcoef(rank_MN)[np.triu_indices(m, 1)].mean()
    assert kendall_w(rank_MN) == pytest.approx((1 + (m - 1) * mean) / m, abs=1e-12)


@pytest.mark.parametrize(('m', 'n'), [(3, 3), (4, 5), (6, 8)])
def test_w_with_ties_is_friedmans_statistic_in_another_unit(m, n):
    for _ in range(20):
        rank_MN = RNG.integers(0, 3, (m, n))
        if (rank_MN == rank_MN[:, :1]).all():
            continue
        chi2 = friedmanchisquare(*rank_MN.T).statistic
        assert kendall_w(rank_MN) == pytest.approx(chi2 / (m * (n - 1)), abs=1e-12)


def test_w_is_1_where_all_agree_0_where_two_are_opposite_and_1_over_m_for_dice():
    order = RNG.permutation(5)
    assert kendall_w(np.tile(order, (4, 1))) == pytest.approx(1)
    assert kendall_w([[1, 1, 3], [2, 2, 7]]) == pytest.approx(1)  # ties too, and only the order counts
    assert kendall_w([order, -order]) == 0
    dice = np.mean([kendall_w([RNG.permutation(3) for _ in range(3)]) for _ in range(2000)])
    assert dice == pytest.approx(1 / 3, abs=0.02)


def test_w_does_not_see_the_names_of_raters_and_items_nor_those_who_were_not_asked():
    rank_MN = RNG.random((4, 5))
    w = kendall_w(rank_MN)
    assert kendall_w(rank_MN[RNG.permutation(4)][:, RNG.permutation(5)]) == pytest.approx(w)
    absent = np.pad(rank_MN, ((0, 1), (0, 1)), constant_values=np.nan)
    assert kendall_w(absent) == pytest.approx(w)
    absent[0, 2] = np.nan  # an item that one did not rank is out for all
    assert kendall_w(absent) == pytest.approx(kendall_w(np.delete(rank_MN, 2, 1)))
    for nothing in (rank_MN[:1], rank_MN[:, :1], np.zeros((3, 3)), np.full((2, 2), np.nan)):
        assert np.isnan(kendall_w(nothing))


def test_concordance_covers_the_truth_and_leaves_out_prompts_that_say_nothing():
    def panel(rng, prompts):
        """Three raters who see the same quality, each with his own noise."""
        return rng.normal(0, 1, (prompts, 1, 3)) + rng.normal(0, 0.7, (prompts, 3, 3))

    rng = np.random.default_rng(2)
    truth = concordance(panel(rng, 3000), resamples=1).value
    assert 0.6 < truth < 0.8
    found = [concordance(panel(rng, 30), resamples=100) for _ in range(100)]
    assert 0.88 <= np.mean([truth in interval for interval in found]) <= 0.99
    rank_BMN = panel(rng, 15)
    rank_BMN[3] = np.nan
    whole, without = concordance(rank_BMN), concordance(np.delete(rank_BMN, 3, 0))
    assert whole == without and whole.n == 14 and 0 < whole.low
    few = concordance(rank_BMN[:10])  # nine of them: no interval to speak of
    assert (few.n, few.low, few.high) == (9, 0.0, 1.0) and 0 < few.value < 1
    nothing = concordance(np.full((2, 3, 3), np.nan))
    assert np.isnan(nothing.value) and (nothing.low, nothing.high, nothing.n) == (0, 1, 0)


def test_votes_are_those_of_the_rows_and_complementary(tmp_path, rows):
    rankings = read(write(tmp_path / 'rankings.jsonl', rows))
    assert set(rankings.policies) == {'rl', 'sft', 'human', 'base'} and len(rankings.raters) == 3
    for a, b in combinations(rankings.policies, 2):
        forth_B, back_B = votes(rankings, a, b), votes(rankings, b, a)
        np.testing.assert_allclose(forth_B, 1 - back_B, atol=1e-15)
        for prompt, vote in zip(rankings.prompts, forth_B):
            said = []
            for row in rows:
                place = {name: i for i, names in enumerate(row['ranking']) for name in np.atleast_1d(names)}
                if row['prompt_id'] == prompt and {a, b} <= place.keys():
                    said.append(0.5 if place[a] == place[b] else float(place[a] < place[b]))
            assert np.isnan(vote) if not said else vote == pytest.approx(np.mean(said))
    assert np.isnan(votes(rankings, 'rl', 'sft')).any()
    assert set(votes(rankings, 'rl', 'rl')[~np.isnan(votes(rankings, 'rl', 'rl'))]) == {0.5}


def test_the_order_of_the_rows_changes_nothing(tmp_path, rows):
    forth, back = (read(write(tmp_path / f'{step}.jsonl', rows[::step])) for step in (1, -1))
    vote_of = dict(zip(back.prompts, votes(back, 'rl', 'sft')))
    np.testing.assert_array_equal([vote_of[prompt] for prompt in forth.prompts], votes(forth, 'rl', 'sft'))
    assert concordance(forth.rank_BMN).value == pytest.approx(concordance(back.rank_BMN).value)


def test_a_judge_finds_its_prompts_whatever_their_order(tmp_path, rows):
    rankings = read(write(tmp_path / 'rankings.jsonl', rows))
    expected_B = votes(rankings, 'rl', 'sft')
    n = len(expected_B) + 1
    prompts = [Prompt(f'text of {id}', id) for id in rankings.prompts] + [Prompt('never shown', 'p99')]
    order = RNG.permutation(len(prompts))
    shuffled = [prompts[i] for i in order]
    vote_B = judge(rankings, 'rl', 'sft')(shuffled, [''] * n, [''] * n)
    np.testing.assert_array_equal(vote_B, np.append(expected_B, np.nan)[order])
    forth = compare(shuffled, ['a'] * n, ['b'] * n, judge(rankings, 'rl', 'sft'), names=('rl', 'sft'))
    assert forth.raw.value == pytest.approx(win_rate(expected_B).value)
    back = compare(shuffled, ['b'] * n, ['a'] * n, judge(rankings, 'sft', 'rl'))
    assert forth.raw.value == pytest.approx(1 - back.raw.value) and forth.p_value == back.p_value
    # A file that names prompts by their texts is read alike.
    by_text = [{'prompt': f'text of {row["prompt_id"]}', **row, 'prompt_id': None} for row in rows]
    rankings = read(write(tmp_path / 'by_text.jsonl', by_text))
    np.testing.assert_array_equal(judge(rankings, 'rl', 'sft')(shuffled, [''] * n, [''] * n), vote_B)
    np.testing.assert_array_equal(
        judge(rankings, 'rl', 'sft')([prompt.text for prompt in shuffled], [''] * n, [''] * n), vote_B
    )
    with pytest.raises(Mistake, match="'something else'.*'text of p0'"):
        judge(rankings, 'rl', 'sft')(['something else'], ['a'], ['b'])


@pytest.fixture(scope='module')
def responses():
    """Prompts of the micro world, and what three policies say to them: the third one nothing but the first's."""
    prompts = [tasks.prompt('summarization', 'test', i) for i in range(150)]
    rng = random.Random(0)
    said = {name: [tasks.candidate(prompt, rng) for prompt in prompts] for name in ('a', 'b')}
    return prompts, said | {'c': [tasks.candidate(prompt, rng) for prompt in prompts], 'd': said['a']}


def simulated(prompts, said, raters=3, seed=0, noise=1.0):
    """How raters of the micro world rank what policies say."""
    who = range(seed * raters, (seed + 1) * raters)
    return by_scores(prompts, said, {f'simulated {one}': partial(scores, seed=one, noise=noise) for one in who})


def test_simulated_raters_agree_by_as_much_as_they_see_quality(responses):
    prompts, said = responses
    told = {name: said[name] for name in 'abc'}
    quiet, plain, deaf = (
        concordance(simulated(prompts, told, noise=noise, raters=4).rank_BMN) for noise in (0.0, 1.0, 1e6)
    )
    assert quiet.value == 1 > quiet.low > 0.96 and quiet.n > 140  # those of equal quality say nothing
    assert deaf.low < 1 / 4 < deaf.high < plain.low < plain.high < 1


def test_a_simulated_rater_ranks_by_scores_that_only_who_and_what_decide(responses):
    prompts, said = responses
    ranked = simulated(prompts, said, seed=2)
    assert len(ranked.raters) == 3 and ranked.policies == tuple(said) and ranked.prompts[7] == prompts[7].id
    for m, rater in enumerate(ranked.raters):
        seed = int(rater.split()[1])
        score_BN = np.array([scores(prompts, texts, seed=seed) for texts in said.values()]).T
        for rank_N, score_N in zip(ranked.rank_BMN[:, m], score_BN):
            assert np.all(np.sign(rank_N[:, None] - rank_N) == np.sign(score_N - score_N[:, None]))
            assert rank_N.min() == 0 and rank_N[0] == rank_N[3]  # the same text has the same place
    back = simulated(prompts[::-1], {name: said[name][::-1] for name in 'dcba'}, seed=2)
    np.testing.assert_array_equal(back.rank_BMN[::-1, :, ::-1], ranked.rank_BMN)
    other = simulated(prompts, said, seed=3)
    assert not set(other.raters) & set(ranked.raters) and (other.rank_BMN != ranked.rank_BMN).any()


def test_simulated_raters_put_one_before_another_as_often_as_they_vote_for_it(responses):
    prompts, said = responses
    p_B = np.array(probability(prompts, said['a'], said['b']))
    found_B = votes(simulated(prompts, said, raters=40), 'a', 'b')
    error = np.sqrt((p_B * (1 - p_B)).sum() / 40)
    assert abs((found_B - p_B).sum()) < 4 * error
    assert abs(((found_B - p_B) * np.sign(p_B - 0.5)).sum()) < 4 * error  # nor nearer to a coin, nor to certainty


GOOD = {'prompt_id': 'p', 'rater': 'ann', 'ranking': ['a', 'b']}


@pytest.mark.parametrize(
    ('row', 'says'),
    [
        ({'prompt_id': 'q', 'rater': 'ann'}, "'ranking'.*'prompt_id', 'rater'"),
        ({'rater': 'ann', 'ranking': ['a', 'b']}, "'prompt_id' or 'prompt'.*'rater', 'ranking'"),
        ({**GOOD, 'rater': None}, "no column 'rater'"),
        (GOOD, r"'ann'.*/rankings\.jsonl:1$"),
        ({**GOOD, 'rater': 'bob', 'ranking': ['a', 'b', ['a']]}, "'a' twice"),
        ({**GOOD, 'rater': 'bob', 'ranking': 'ab'}, r'\["b", "c"\].* ab$'),
        ({**GOOD, 'rater': 'bob', 'ranking': ['a', []]}, r"\['a', \[\]\]$"),
        ({**GOOD, 'rater': 'bob', 'ranking': ['a', 2]}, r"\['a', 2\]$"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path, row, says):
    path = tmp_path / 'rankings.jsonl'
    path.write_text(f'{json.dumps(GOOD)}\n\n{json.dumps(row)}\n', encoding='utf-8')
    with pytest.raises(Mistake, match=r'rankings.jsonl:3: .*' + says):
        read(path)


def test_an_unknown_policy_and_ranks_that_are_none_are_mistakes(tmp_path):
    rankings = read(write(tmp_path / 'rankings.jsonl', [{**GOOD, 'ranking': ['policy a', 'policy b']}]))
    with pytest.raises(Mistake, match="'polcy b'.*'policy b'"):
        votes(rankings, 'policy a', 'polcy b')
    for ranks, told in (([1, 2, 3], r'ranks.*\(3,\)'), ([[1, np.inf], [1, 2]], r'ranks.* finite.*\(2, 2\)')):
        with pytest.raises(Mistake, match=told):
            kendall_w(ranks)


def test_a_rater_agrees_with_itself_and_with_others_as_often_as_it_gives_their_order(tmp_path):
    best = {'ann': ['a', 'b', 'c'], 'bob': ['a', 'b', 'c'], 'eve': ['c', 'b', 'a'], 'tim': [['a', 'b', 'c']]}
    rows = [{'prompt_id': f'p{i}', 'rater': who, 'ranking': best[who]} for i in range(20) for who in best]
    rows += [{'prompt_id': f'p{i}', 'rater': 'ann', 'ranking': ['a', 'c', 'b'], 'repeat': True} for i in range(4)]
    rows += [{'prompt_id': 'p5', 'rater': 'bob', 'ranking': best['bob'], 'repeat': True}]
    rows += [{'prompt_id': 'p99', 'rater': 'bob', 'skipped': 'both are bad'}]
    rows += [{'prompt_id': 'p99', 'rater': 'bob', 'ranking': best['bob'], 'repeat': True}]  # of what it skipped
    found = read(write(tmp_path / 'k.jsonl', rows))
    assert len(found.prompts) == 20 and found.skipped == 1
    one = raters(found)
    assert (one['ann'].itself.value, one['ann'].itself.n) == (pytest.approx(2 / 3), 4)
    assert (one['bob'].itself.value, one['bob'].itself.n) == (1, 1) and np.isnan(one['eve'].itself.value)
    assert one['ann'].others.value == pytest.approx((1 + 0 + 0.5) / 3) == one['bob'].others.value
    assert one['eve'].others.value == pytest.approx((0 + 0 + 0.5) / 3) and one['tim'].others.value == 0.5
    assert all(rater.prompts == 20 for rater in one.values())
    alike = {name: {f'p{i}': 'x' if name < 'c' else 'y' for i in range(20)} for name in 'abc'}
    ties = [{'prompt_id': f'p{i}', 'rater': 'ann', 'ranking': [['a', 'b'], 'c']} for i in range(20)]
    ties += [row | {'rater': 'bob', 'ranking': ['c', ['a', 'b']]} for row in ties] + [
        row | {'repeat': True} for row in ties
    ]
    forced, chosen = (raters(read(write(tmp_path / 'k.jsonl', ties)), responses=given) for given in (alike, {}))
    assert forced['ann'].others.value == 0 and chosen['ann'].others.value == pytest.approx(1 / 3)  # c alone is at odds
    assert forced['ann'].itself.value == 1 and forced['ann'].itself.n == 20
    same = {name: dict.fromkeys(alike[name], 'x') for name in 'abc'}  # all is one card
    assert np.isnan(raters(found := read(tmp_path / 'k.jsonl'), responses=same)['ann'].others.value)
    assert raters(found, responses={'a': alike['a']})['ann'] == chosen['ann']  # what nobody knows may differ
    alone = raters(read(write(tmp_path / 'k.jsonl', rows[:1])))['ann']
    assert np.isnan(alone.others.value) and alone.prompts == 1
    with pytest.raises(Mistake, match='before, in .*k.jsonl:1'):
        read(write(tmp_path / 'k.jsonl', [rows[80], rows[80]]))
    with pytest.raises(Mistake, match='k.jsonl: nobody has ranked anything'):
        read(write(tmp_path / 'k.jsonl', [rows[-2]]))


# Exports of other tools


POLICIES = ('rl', 'sft', 'human')


@pytest.fixture(scope='module')
def ranked():
    """Responses of three policies to twelve prompts, the last of which two policies answer alike, and three raters."""
    rng = np.random.default_rng(3)
    prompts = [Prompt(f'Question {i}?\n\nTL;DR:', f'q{i}') for i in range(12)]
    written = {name: [f' answer {name} {i}' for i in range(12)] for name in POLICIES}
    written['sft'][11] = written['rl'][11]
    rows = []
    for i in range(12):
        for rater in ('ann', 'bob', 'eve'):
            a, b, c = rng.permutation(POLICIES).tolist()
            ranking = [['rl', 'sft'], 'human'] if i == 11 else [a, [b, c]] if rng.random() < 0.4 else [a, b, c]
            rows.append({'prompt_id': f'q{i}', 'rater': rater, 'ranking': ranking})
    rows.append({'prompt_id': 'q0', 'rater': 'max', 'skipped': 'I cannot judge this'})
    return prompts, written, rows


def places(row):
    return [[one] if isinstance(one, str) else one for one in row['ranking']]


def by_task(rows, prompts):
    return [(prompt, [row for row in rows if row['prompt_id'] == prompt.id]) for prompt in prompts]


def label_studio(prompts, written, rows, buckets):
    """Tasks as its JSON export has them; where there are no ties, one list, else a bucket a place."""
    tasks = []
    for number, (prompt, theirs) in enumerate(by_task(rows, prompts)):
        ids = dict(zip(POLICIES, 'cab'))  # which say nothing
        items = [{'id': ids[name], 'title': '', 'body': written[name][number]} for name in POLICIES]
        annotations = []
        for row in theirs:
            about = {'id': len(annotations), 'completed_by': {'id': 7, 'email': row['rater']}, 'lead_time': 3.2}
            if 'skipped' in row:
                annotations.append(about | {'was_cancelled': True, 'result': []})
                continue
            named = [[ids[name] for name in names] for names in places(row)]
            value = {'_': [], **{f'place {k}': names for k, names in enumerate(named)}}
            if not buckets and max(map(len, named)) == 1:
                value = {'_': [name for (name,) in named]}
            result = {'from_name': 'rank', 'to_name': 'prompt', 'type': 'ranker', 'value': {'ranker': value}}
            annotations.append(about | {'was_cancelled': False, 'result': [result]})
        data = {'prompt': prompt.text.strip(), 'items': items}
        tasks.append({'id': number, 'data': data, 'annotations': annotations, 'predictions': []})
    return tasks


def argilla(prompts, written, rows, kind):
    """Records: as 1.x put them on the hub, as `to_list` of 2.x has them, whose ranks are a list of names without ties or
    ranks, and flat ones.
    """
    records = []
    for number, (prompt, theirs) in enumerate(by_task(rows, prompts)):
        fields = {
            'prompt': prompt.text,
            **{f'response{k}': written[name][number] for k, name in enumerate(POLICIES, 1)},
        }
        of = {name: f'response{k}' for k, name in enumerate(POLICIES, 1)}
        users = [row['rater'] for row in theirs]
        status = ['discarded' if 'skipped' in row else 'submitted' for row in theirs]
        values = [
            [{'value': of[name], 'rank': k} for k, names in enumerate(places(row), 1) for name in names]
            if 'ranking' in row else None for row in theirs
        ]  # fmt: skip
        if kind == 'table':
            values = [one and {key: [each[key] for each in one] for key in ('rank', 'value')} for one in values]
        answers = [{'user_id': u, 'value': v, 'status': s} for u, v, s in zip(users, values, status)]
        if kind == 'nested':
            comment = [{'user_id': users[0], 'value': 'well said', 'status': 'submitted'}]
            records.append({'id': number, 'fields': fields, 'responses': {'why': comment, 'order': answers}})
        elif kind == 'flat':
            flat = {'order.responses': values, 'order.responses.users': users, 'order.responses.status': status}
            records.append({'id': number, **fields, **flat})
        else:
            records.append({**fields, 'order': answers, 'external_id': prompt.id, 'metadata': '{}'})
    return records


@pytest.mark.parametrize('kind', ['buckets', 'lists', 'hub', 'table', 'nested', 'flat'])
def test_the_same_rankings_are_the_same_whatever_tool_they_come_from(ranked, kind, tmp_path):
    prompts, written, rows = ranked
    tool = (
        (lambda *of: label_studio(*of, kind == 'buckets'))
        if kind in ('buckets', 'lists')
        else partial(argilla, kind=kind)
    )
    known = {'policies': POLICIES, 'prompts': prompts, 'responses': written}
    ours = read(write(tmp_path / 'ours.jsonl', rows), **known)
    (tmp_path / 'export.json').write_text(json.dumps(tool(prompts, written, rows)), encoding='utf-8')
    theirs = read(tmp_path / 'export.json', **known)
    assert (theirs.raters, theirs.skipped, set(theirs.policies)) == (ours.raters, 1, set(POLICIES))
    assert concordance(theirs.rank_BMN) == concordance(ours.rank_BMN)
    for a, b in combinations(POLICIES, 2):
        found, expected = (dict(zip(one.prompts, votes(one, a, b))) for one in (theirs, ours))
        assert found == expected
    said = {name: dict(zip([prompt.id for prompt in prompts], texts)) for name, texts in written.items()}
    one, other = (raters(found, responses=said) for found in (theirs, ours))
    assert [(name, who.prompts, who.others) for name, who in one.items()] == [
        (name, who.prompts, who.others) for name, who in other.items()
    ]


def test_a_choice_of_two_is_a_ranking_of_two(tmp_path):
    prompts, written = [Prompt('Why?', 'q')], {'rl': ['Because.'], 'sft': ['No.']}
    task = {'data': {'prompt': 'Why?', 'text1': 'No.', 'text2': 'Because.'}}
    for side, expected in ('left', 0.0), ('right', 1.0):
        result = {'from_name': 'pw', 'to_name': 'txt-1,txt-2', 'type': 'pairwise', 'value': {'selected': side}}
        rows = [task | {'annotations': [{'completed_by': 1, 'result': [result]}]}]
        found = read(write(tmp_path / 'in.jsonl', rows), policies=written, prompts=prompts, responses=written)
        assert votes(found, 'rl', 'sft').tolist() == [expected] and found.raters == ('1',)
    rows[0]['data']['text1'] = 'Of another run.'
    with pytest.raises(Mistake, match="'text1'.*'Of another run.'"):
        read(write(tmp_path / 'in.jsonl', rows), policies=written, prompts=prompts, responses=written)
