"""From a model's name to its files and tokenizer, and from a question to its tokens."""
