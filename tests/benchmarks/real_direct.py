"""What direct RLAIF makes of a real policy on real prompts: python tests/benchmarks/real_direct.py --keep FOLDER

    --model DIR --task harmless --steps 30 --batch 16 --held-out 96 --learning-rate 2e-4

The policy is asked what people asked in the harmless test split of HH (`../shared/data`), and rates what it says itself,
1 to 10. Without --model it is SmolLM2 135M, fetched into --keep. Adapters are trained by leave-one-out REINFORCE. Prompts
that are held out are answered before and behind the training; what is told is the mean score of both, the mean difference
with an interval over prompts, and how far the policy went (KL, nats a response). A few answers are printed side by side.
The export is in --keep/run/export; where torch is installed, transformers writes on from it, and both are compared.
What was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

import real_labels  # noqa: E402
import real_weights  # noqa: E402

SAMPLES = 4  # shown
NEW = 48  # tokens of a response
MOST = 256  # of a prompt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', help='a folder or a name on the hub')
    parser.add_argument('--keep', type=Path, required=True, help='a folder for the run, and for what is fetched')
    parser.add_argument('--task', default='harmless', choices=('harmless', 'helpful'))
    parser.add_argument('--steps', type=int, default=30)
    parser.add_argument('--batch', type=int, default=16, help='responses, two to a prompt')
    parser.add_argument('--held-out', type=int, default=96, help='prompts')
    parser.add_argument('--learning-rate', type=float, default=2e-4)
    flags = parser.parse_args()

    import rlaif_jax
    from launch.run import start_jax
    from rlaif_jax.evaluation.statistics import mean_interval

    start_jax()
    name = flags.model or str(real_weights.model(flags.keep))
    lm = rlaif_jax.load(name)
    shown = list(dict.fromkeys(pair.prompt.text for pair in real_labels.harmless(0, 2000)))
    held_out, train = shown[: flags.held_out], shown[flags.held_out :]
    reward = rlaif_jax.rater(lm, task=flags.task, batch=16, max_length=1024)
    began = time.monotonic()
    policy = rlaif_jax.reinforce(
        lm, train, reward, validation=held_out, folder=flags.keep / 'run', steps=flags.steps, batch=flags.batch,
        samples=2, baseline='leave_one_out', max_prompt=MOST, max_new_tokens=NEW, lora={'rank': 16},
        policy_optimizer={'name': 'adamw', 'learning_rate': flags.learning_rate}, eval_every=10, save_every=10,
        eval_prompts=flags.held_out,
    )  # fmt: skip
    print(f'{flags.steps} steps of {flags.batch} responses: {time.monotonic() - began:.0f} s in this start')

    written = {}
    for title, model in (('before', lm), ('behind', policy)):
        short = [rlaif_jax.Prompt(text, str(i)) for i, text in enumerate(held_out)]
        short = fitted(model, short)
        written[title] = rlaif_jax.generate(model, short, max_new_tokens=NEW, seed=1, batch=16)
    score = {title: reward(held_out, texts) for title, texts in written.items()}
    for title, score_B in score.items():
        print(f'{title}: score {mean_interval(score_B[score_B == score_B])}')
    difference_B = score['behind'] - score['before']
    print(f'difference, over prompts: {mean_interval(difference_B[difference_B == difference_B])}')
    for row in map(json.loads, (flags.keep / 'run/metrics.jsonl').open(encoding='utf-8')):
        if 'eval/score' in row:
            print(
                f'step {row["step"]}: held-out score {row["eval/score"]:+.4f}, KL {row["eval/kl"]:.2f} nats a response'
            )
    for i in range(SAMPLES):
        print(f'\n{held_out[i][-300:].strip()}')
        for title, texts in written.items():
            print(f'  {title} ({score[title][i]:+.3f}): {" ".join(texts[i].split())}')
    return transformed(
        flags.keep / 'run/export', policy, fitted(policy, [rlaif_jax.Prompt(t, t) for t in held_out[:4]])
    )


def fitted(lm: object, prompts: list) -> list:
    """The prompts as the policy was given them in training."""
    from rlaif_jax.data import loader
    from rlaif_jax.shortening import reads

    return list(loader.fitted(prompts, reads(lm.tokenizer, MOST)))


def transformed(export: Path, policy: object, prompts: list) -> int:
    """Whether transformers goes on from the export as we do: 1 where it writes something else."""
    import rlaif_jax

    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        print('torch is not installed: nobody looked at the export')
        return 0
    ours = rlaif_jax.generate(policy, prompts, max_new_tokens=16, temperature=0)
    model, different = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32), 0
    for text, row in zip(ours, policy.tokenizer.prompts([one.text for one in prompts])):
        out = model.generate(torch.tensor([row]), max_new_tokens=16, do_sample=False, pad_token_id=policy.tokenizer.pad)
        different += policy.tokenizer.decode([out[0, len(row) :].tolist()])[0] != text
    print(
        f'\ntransformers writes on from the export: {len(prompts) - different} of {len(prompts)} greedy texts are ours'
    )
    return int(different > 0)


if __name__ == '__main__':
    sys.exit(main())
