"""The other side of `peers.py`, in an environment of its own that has torch, transformers and TRL, and no JAX.

`python peers_trl.py PLAN CASE ARM` answers each request with the seconds of one step. Trainers are driven as their users
drive them, by `trainer.train()`; a callback waits for a request where a step begins and answers where it ends. So a step
is timed from TRL's `on_step_begin` to its `on_step_end`: generation, rewards, log-probabilities, both passes, clipping and
the optimizer; not the making of batches of tokens, nor logging, nor anything done once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import turns
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.utils.logging import disable_progress_bar

STEPS = 1000  # more than anybody asks for


def answered(clock: turns.Clock, **more: Any) -> dict[str, Any]:
    return clock.stopped() | {'threads': torch.get_num_threads()} | more


def rates(threads: int = 0) -> dict[str, float]:
    """Operations a second of a product of matrices, bytes a second of a copy and of a sum: the best of several."""
    torch.set_num_threads(threads or torch.get_num_threads())
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    source = torch.randn(2**26)  # 256 MiB: in no cache
    target = torch.empty_like(source)

    def best(piece: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            piece()
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    size = source.numel() * 4
    return {
        'flops': 2 * 2048**3 / best(lambda: torch.mm(a, b)),
        'copied': 2 * size / best(lambda: target.copy_(source)),
        'read': size / best(source.sum),
    }


class Turns(TrainerCallback):
    """A step for each request."""

    def __init__(self, out: Any) -> None:
        self.out, self.clock, self.tokens = out, turns.Clock(), 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # nobody asks any more: there is nothing to save
        self.clock = turns.Clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        print(json.dumps(answered(self.clock, tokens=self.tokens)), file=self.out, flush=True)

    def counting(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The collator, and how many tokens of text its batch holds."""

        def counted(rows: Any) -> Any:
            self.tokens = sum(len(row['input_ids']) for row in rows)
            return collate(rows)

        return counted


def common(plan: dict[str, Any], rows: int) -> dict[str, Any]:
    """What all trainers are told: the dtype of products, no recomputation, AdamW as ours has it; nothing is saved."""
    return {
        'output_dir': str(Path(plan['model']).parent / 'trl'), 'per_device_train_batch_size': rows, 'max_steps': STEPS,
        'learning_rate': 1e-5, 'lr_scheduler_type': 'constant', 'adam_beta1': 0.9, 'adam_beta2': 0.95,
        'weight_decay': 0.0, 'max_grad_norm': 1.0,
        'bf16': plan['dtype'] == 'bfloat16', 'fp16': False, 'activation_checkpointing': False,
        'train_sampling_strategy': 'sequential',
        'use_cpu': not torch.cuda.is_available(), 'save_strategy': 'no', 'report_to': 'none', 'disable_tqdm': True,
    }  # fmt: skip


def causal(plan: dict[str, Any]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(plan['model'], dtype=torch.float32)
    return model.to('cuda') if torch.cuda.is_available() else model


def rollouts(plan: dict[str, Any], samples: int, arm: str) -> Callable[[], dict[str, Any]]:
    """`transformers.generate`, which never ends early."""
    model = causal(plan).eval()
    prompt_BT = torch.tensor(plan['prompt_rows'][: plan['rollouts'] // samples], device=model.device)
    how = {
        'do_sample': True, 'temperature': plan['temperature'], 'top_k': 0, 'top_p': 1.0,
        'max_new_tokens': plan['new'], 'min_new_tokens': plan['new'], 'num_return_sequences': samples,
        'attention_mask': torch.ones_like(prompt_BT), 'pad_token_id': plan['pad'],
        **({'cache_implementation': 'static'} if arm == 'static cache' else {}),
    }  # fmt: skip

    @torch.inference_mode()
    def step() -> dict[str, Any]:
        clock = turns.Clock()
        written_BT = model.generate(prompt_BT, **how)
        written_BT.cpu()
        found = answered(clock)
        assert written_BT.shape == (plan['rollouts'], plan['prompt'] + plan['new']), written_BT.shape
        return found

    return step


def check(plan: dict[str, Any]) -> dict[str, Any]:
    """Mean −log p of the rows of SFT, which says whether both sides have one model."""
    model = causal(plan).eval()
    total = count = 0.0
    with torch.inference_mode():
        for row in plan['sft_rows'][:2]:
            token_BT = torch.tensor([row], device=model.device)
            logp_BTV = model(token_BT).logits[:, :-1].log_softmax(-1)
            total -= float(logp_BTV.gather(-1, token_BT[:, 1:, None]).sum())
            count += token_BT.shape[1] - 1
    return {'nll': total / count}


def trainer(plan: dict[str, Any], case: str, arm: str, out: Any) -> Any:
    """The trainer of a case, on a data set that lasts."""
    import trl
    from datasets import Dataset

    tokenizer, turn = AutoTokenizer.from_pretrained(plan['model']), Turns(out)
    more = {'pad_to_multiple_of': 64} if arm == 'padded to 64' else {}
    if case.startswith('rloo'):
        rows = plan['rl']
        args = trl.RLOOConfig(
            **common(plan, rows), num_generations=plan['samples'], max_completion_length=plan['new'],
            temperature=plan['temperature'], beta=plan['beta'], generation_kwargs={'min_new_tokens': plan['new']},
        )  # fmt: skip
        data = Dataset.from_list([{'prompt': text} for text in plan['prompt_texts'][: rows // plan['samples']]] * 20)

        def length(completion_ids: Any, **_: Any) -> list[float]:
            assert all(len(row) == plan['new'] for row in completion_ids), 'a response ended early'
            return [float(len(set(row))) for row in completion_ids]  # so that not all are alike

        tokenizer.padding_side = 'left'
        made = trl.RLOOTrainer(
            causal(plan), [length], args=args, train_dataset=data, processing_class=tokenizer, callbacks=[turn]
        )
        found = made._tokenize_prompts(plan['prompt_texts'][:1])[0]
        assert found == plan['prompt_rows'][:1], 'the prompts are other tokens here'
    elif case == 'reward_model':
        args = trl.RewardConfig(**common(plan, plan['pairs']), max_length=None, **more)
        rows = [
            {'chosen_ids': prompt + first, 'rejected_ids': prompt + second}
            for prompt, first, second in plan['pair_rows']
        ]
        model = AutoModelForSequenceClassification.from_pretrained(plan['model'], num_labels=1, dtype=torch.float32)
        made = trl.RewardTrainer(
            model, args=args, train_dataset=Dataset.from_list(rows * 20), processing_class=tokenizer, callbacks=[turn]
        )
    else:
        longest, packed = max(map(len, plan['sft_rows'])), arm == 'packed'
        # As many packs as the rows fill; what a batch really holds is counted.
        rows = round(sum(map(len, plan['sft_rows'])) / longest) if packed else len(plan['sft_rows'])
        args = trl.SFTConfig(**common(plan, rows), max_length=longest, packing=packed, **more)
        data = [
            {'input_ids': row, 'completion_mask': [0] * before + [1] * (len(row) - before)}
            for row, before in zip(plan['sft_rows'], plan['sft_before'])
        ]
        args.completion_only_loss = True
        made = trl.SFTTrainer(
            causal(plan), args=args, train_dataset=Dataset.from_list(data * 20), processing_class=tokenizer,
            callbacks=[turn],
        )  # fmt: skip
        made.data_collator = turn.counting(made.data_collator)
    return made


def main() -> None:
    out = turns.answers()
    disable_progress_bar()
    file, case, arm = sys.argv[1:]
    plan = json.loads(Path(file).read_text(encoding='utf-8'))
    if case == 'rates':
        turns.serve(lambda: rates(), out)
    elif case == 'check':
        turns.serve(lambda: check(plan), out)
    elif case.startswith('rollouts'):
        turns.serve(rollouts(plan, 4 if case.endswith('4') else 1, arm), out)
    else:
        trainer(plan, case, arm, out).train()


if __name__ == '__main__':
    main()
