"""Reads exports with the transformers of whatever Python runs it, and prints what it finds as JSON. Knows nothing of the
project: `python reads_exports.py < tasks.json`, where tasks.json is {name: {folder, kind, texts, rows, mask, chat}}.
"""

import json
import sys

import torch
import transformers

KINDS = {'lm': 'AutoModelForCausalLM', 'score': 'AutoModelForSequenceClassification', 'adapter': 'AutoModelForCausalLM'}


def read(task: dict) -> dict:
    folder = task['folder']
    kind = getattr(transformers, KINDS[task['kind']])
    base = task['base'] if task['kind'] == 'adapter' else folder
    model, loading = kind.from_pretrained(
        base, output_loading_info=True, attn_implementation='eager', dtype=torch.float32
    )
    wrong = {name: sorted(map(str, found)) for name, found in loading.items() if found}
    if task['kind'] == 'adapter':
        import peft

        model = peft.PeftModel.from_pretrained(model, f'{folder}/adapter')
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    generation = transformers.GenerationConfig.from_pretrained(folder)
    with torch.no_grad():
        out = model.eval()(torch.tensor(task['rows']), attention_mask=torch.tensor(task['mask']))
    chat = task['chat'] and tokenizer.apply_chat_template(
        task['chat'], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    names = ('vocab_size', 'hidden_size', 'eos_token_id', 'pad_token_id', 'bos_token_id', 'tie_word_embeddings')
    return {
        'wrong': wrong,
        'config': {name: getattr(config, name) for name in names} | {'dtype': str(config.dtype)},
        'generation': [generation.eos_token_id, generation.pad_token_id],
        'named': [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, len(tokenizer)],
        'ids': [tokenizer(text, add_special_tokens=False)['input_ids'] for text in task['texts']],
        'given': sorted(tokenizer('one two')),
        'started': [tokenizer(text)['input_ids'] for text in task['texts']],
        'decoded': [tokenizer.decode(tokenizer(text)['input_ids'], skip_special_tokens=True) for text in task['texts']],
        'chat': chat and list(chat['input_ids']),
        'logits': out.logits.tolist(),
    }


if __name__ == '__main__':
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = {name: read(task) for name, task in json.load(sys.stdin).items()}
    print(json.dumps({'version': transformers.__version__, 'found': found}))
