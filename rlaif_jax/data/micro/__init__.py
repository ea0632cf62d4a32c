"""The micro world: a SIMULATED Reddit small enough for a laptop.

A hidden fact sheet becomes a post; a good summary states the facts of the sheet, in other words, and nothing else.
Posts, references, candidates, raters and their votes are all simulated: no person wrote or judged any of this, and
numbers measured here say something about methods, nothing about people.

    lexicon     the phrases: what a post says and what a summary says for the same fact
    world       facts, posts, references, and candidates of every quality
    oracle      reads any text against the facts: verdicts and a quality
    raters      noisy voters on top of the oracle, in the place of human raters
    tokenizer   a small exact tokenizer for this language that still encodes any text
"""
