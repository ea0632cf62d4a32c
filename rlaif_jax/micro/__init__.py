"""The micro world: SIMULATED tasks small enough for a laptop.

A hidden fact sheet becomes a post; a good summary states the facts of the sheet, in other words, and nothing else. Two
dialogue tasks live in the same world: a helpful assistant answers what was asked from what it was told, and a harmless
one does not help with harm. Posts, dialogues, references, candidates, raters and their votes are all simulated: no
person wrote or judged any of this, and numbers measured here say something about methods, nothing about people.

    lexicon     the phrases: what a post says and what a summary says for the same fact; requests, steps, refusals
    world       task 'summarization': facts, posts, references, and candidates of every quality
    oracle      reads any text: what it states and how badly it is written; verdicts and a quality for summaries
    helpful     task 'helpful': dialogues, candidates, verdicts and quality
    harmless    task 'harmless': dialogues, candidates, verdicts, harm and quality
    tasks       the one place that knows the three tasks
    raters      noisy voters on top of the oracles, in the place of human raters
    judges      raters, and the oracle of harm, as what compares policies
    figures     what a policy gets wrong, by the oracles
    sources     all of it as data sets, which is what the rest of the project knows
    tokenizer   a small exact tokenizer for this language that still encodes any text
"""
