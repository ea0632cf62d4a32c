"""Preferences and ratings from a language model: prompts, the scoring engine, and the two labelers."""
