"""One decoder-only language model, its heads, known sizes, and Hugging Face checkpoints in and out."""
