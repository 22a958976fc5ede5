"""Models: pinning a model by name, loading its tokenizer, writing prompts, comparing texts."""
