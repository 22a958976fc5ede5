"""Why `neighbours` and `twins` reject a pair."""

REASONS = {
    "no_entity": "The question names nobody and nothing, and has no date and no number.",
    "contains_fact": "It repeats what the true answer adds to its question, or asks that question.",
    "duplicate": "Another row, the other half or a fact to forget has the question or the answer.",
    "unfinished": "The token limit cut it off before the end of its first sentence.",
    "empty": "It has no words.",
    "too_long": "The prompt with the answer exceeds `train.max_length` or the target's context.",
    "length": "The invented question is too short or too long to be one.",
    "no_start": "The template and the tokenizer write no token before the question.",
}
"""The reasons, in words that users read."""
