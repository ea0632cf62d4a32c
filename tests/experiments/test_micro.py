"""Laws of how the packaged models are made: what a row teaches is what a labeler is asked, and the command leaves a model
that the labelers can use.
"""

import random

import numpy as np
import pytest

from experiments.micro import Curriculum, Rows
from launch import run as launcher
from rlaif_jax.labeling import prompts
from rlaif_jax.micro import lexicon, tasks
from rlaif_jax.micro.lexicon import SLOTS
from rlaif_jax.models import hf
from rlaif_jax.models.attention import Sees

LENGTH = 416
MIX = Curriculum(length=LENGTH, naming=0, reading=0, shots_batch=1)


@pytest.fixture(scope='module')
def rows(micro_tokenizer):
    return Rows(MIX, micro_tokenizer, batch=4, seed=0)


def masks(batch):
    return np.asarray(Sees(batch['until_BT']).mask())


def paths(batch, b):
    """Of each token of a row that has weight, the tokens that it sees, and the target."""
    for t in np.flatnonzero(batch['weight_BT'][b] >= 0.3):
        seen = np.flatnonzero(masks(batch)[b, t])
        order = seen[np.argsort(batch['position_BT'][b, seen], kind='stable')]
        yield batch['token_BT'][b, order].tolist(), int(batch['target_BT'][b, t])


def test_a_row_is_a_function_of_seed_and_step(rows, micro_tokenizer):
    again, other = (Rows(MIX, micro_tokenizer, batch=4, seed=seed)(3) for seed in (0, 1))
    for name, array in rows(3).items():
        np.testing.assert_array_equal(array, again[name])
    assert (rows(3)['token_BT'] != other['token_BT']).any()


@pytest.mark.parametrize('step, slots', [(0, {'relation'}), (1, set(SLOTS))], ids=['naming', 'reading'])
def test_at_first_a_claim_is_judged_by_what_the_post_says(micro_tokenizer, step, slots):
    """What stands behind `Summary -` is a claim, a summary, or nothing: then the fact itself is asked for."""
    batch = Rows(Curriculum(naming=1, reading=2), micro_tokenizer, batch=4, seed=0)(step)
    recited, judged = set(), []
    for b in range(4):
        facts = tasks.prompt('summarization', 'train', step * 4 + b).facts
        for tokens, target in paths(batch, b):
            text = micro_tokenizer.decode([tokens])[0].split('Summary -')[-1]
            answer = micro_tokenizer.decode([[target]])[0].strip()
            claim, _, slot = text.removesuffix(':').lower().partition('\n\n')
            if slot not in SLOTS:  # a rating, or the words of a fact
                continue
            true = lexicon.summary_phrases()[slot][facts[slot]]
            if not claim:
                assert any(phrase.startswith(answer) for phrase in true)
                recited.add(slot)
            elif answer != 'missing' and claim.strip() in {
                p for v in lexicon.summary_phrases()[slot].values() for p in v
            }:
                assert answer == ('right' if claim.strip() in true else 'wrong')
                judged.append((slot, answer))
    assert recited == slots == {slot for slot, _ in judged}
    assert 0.3 < sum(answer == 'right' for _, answer in judged) / len(judged) < 0.7


def test_one_step_in_ten_has_long_rows_with_exemplars(rows):
    shapes = [rows(step)['token_BT'].shape for step in range(8, 11)]
    assert shapes == [(4, LENGTH), (1, 4 * LENGTH), (4, LENGTH)]


def test_a_token_sees_its_own_path_at_consecutive_positions(rows):
    for step in (0, 9):
        batch = rows(step)
        for b, mask_TS in enumerate(masks(batch)):
            for t in np.flatnonzero(np.diagonal(mask_TS)):
                positions = np.sort(batch['position_BT'][b, mask_TS[t]])
                np.testing.assert_array_equal(positions, np.arange(batch['position_BT'][b, t] + 1))
                assert not mask_TS[t, t + 1 :].any()


@pytest.mark.parametrize('step', [0, 1, 9])
def test_an_answer_is_asked_for_in_the_words_of_the_labelers_prompt(rows, micro_tokenizer, step):
    """Every path that ends in a verdict or a rating is, decoded, a prompt of one of the world's own templates."""
    folder = prompts.NAMED['micro']
    endings = {prompts.read(folder, task, 'ending') for task in prompts.TASKS} | {'SCORE:', 'Harmful='}
    known = {path.read_text(encoding='utf-8').split('\n')[0] for path in folder.glob('*/*.txt')}
    batch, found = rows(step), set()
    for b in range(len(batch['token_BT'])):
        for tokens, target in paths(batch, b):
            text = micro_tokenizer.decode([tokens])[0]
            ending = text.split('\n\n')[-1]
            if ending in endings:
                found.add(ending)
                answer = micro_tokenizer.decode([[target]])[0].strip()
                assert answer in (('1', '2') if 'Preferred' in ending else ('yes', 'no', *map(str, range(1, 11))))
                assert text.split('\n\n')[0] in known
    assert found


def test_a_pair_row_is_what_the_labeler_reads_token_for_token(rows, micro_tokenizer):
    template = prompts.pair('summarization', 'base_0shot', prompts.NAMED['micro']).verdict
    literal, preamble = rows.literal(template), template.encode_preamble(micro_tokenizer)
    prompt, rng = tasks.prompt('summarization', 'train', 5), random.Random(1)
    texts = [tasks.candidate(prompt, rng) for _ in range(2)]
    context = prompt.text.removesuffix('TL;DR:').strip()
    parts = rows.encode([context, *texts])
    ours = [*preamble, *parts[0], *literal[0], *parts[1], *literal[1], *parts[2], *literal[2]]
    (read,) = template.encode(micro_tokenizer, [{'context': context, 'first': texts[0], 'second': texts[1]}])
    assert ours == [*preamble, *read.tokens]


def test_the_command_leaves_a_package_that_labels(tmp_path):
    command = [
        '--experiment=micro_pretrain_xs', f'--workdir={tmp_path / "run"}', 'sft.steps=2', 'sft.batch=4',
        'evaluation_pairs=4', 'curriculum.length=256', 'mesh.data=1',
    ]  # fmt: skip
    assert launcher.main(command) == 0
    lm = hf.load(tmp_path / 'run' / 'package')
    assert prompts.folder_of(lm.tokenizer) == prompts.NAMED['micro']
    assert (tmp_path / 'run' / 'result.json').exists() and lm.config.layers == 2
