"""The Arrow schemas of all tables, and the keys that identify their rows."""

import pyarrow as pa

from meow_ray.config.auditing import SUMMARY_FIGURES

SCHEMAS: dict[str, pa.Schema] = {
    "facts": pa.schema(
        [
            ("fact_id", pa.string()),
            ("split", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
        ]
    ),
    "candidates": pa.schema(
        [
            ("fact_id", pa.string()),
            ("candidate_id", pa.int32()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("inverted_answer", pa.string()),
            ("attempt", pa.int32()),
            ("seed", pa.int64()),
            ("generator", pa.string()),
        ]
    ),
    "paraphrases": pa.schema(
        [
            ("fact_id", pa.string()),
            ("paraphrase_id", pa.int32()),
            ("question", pa.string()),
            ("source", pa.string()),
        ]
    ),
    "neighbours": pa.schema(
        [
            ("fact_id", pa.string()),
            ("neighbour_id", pa.int32()),
            ("kind", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
        ]
    ),
    "twins": pa.schema(
        [
            ("fact_id", pa.string()),
            ("twin_id", pa.int32()),
            ("half", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
        ]
    ),
    "memo": pa.schema(
        [
            ("fact_id", pa.string()),
            ("candidate_id", pa.int32()),
            ("question", pa.string()),
            ("text", pa.string()),
            ("memo", pa.float64()),
            ("rouge1", pa.float64()),
            ("rouge2", pa.float64()),
            ("rougeL", pa.float64()),
            ("cv", pa.float64()),
            ("num_windows", pa.int32()),
        ]
    ),
    "selected": pa.schema(
        [
            ("fact_id", pa.string()),
            ("candidate_id", pa.int32()),
            ("rank", pa.int32()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("memo", pa.float64()),
        ]
    ),
    "reference": pa.schema(
        [
            ("role", pa.string()),
            ("fact_id", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("log_probs", pa.list_(pa.float64())),
        ]
    ),
    "guesses": pa.schema(
        [
            ("role", pa.string()),
            ("fact_id", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("guess", pa.float64()),
            ("tokens", pa.int32()),
        ]
    ),
    "metrics": pa.schema(
        [
            ("suite", pa.string()),
            ("metric", pa.string()),
            ("model", pa.string()),
            ("value", pa.float64()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("num_examples", pa.int32()),
        ]
    ),
    "audit": pa.schema(
        [
            ("attack", pa.string()),
            ("variant", pa.string()),
            ("tier", pa.string()),
            ("model", pa.string()),
            ("group", pa.string()),
            ("fact_id", pa.string()),
            ("attempts", pa.int32()),
            ("score", pa.float64()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("reason", pa.string()),
            ("extracted", pa.bool_()),
            ("reply", pa.string()),
            ("weights", pa.string()),
        ]
    ),
}
"""The columns of each artifact that is a table. A table may have other columns after these.

In `audit`, `reason` says why there is no score, by the fixed words of `stages.audit.reasons`; it is
null where there is one. `weights` is the digest of the weights of a quantised, pruned or relearned
model that was asked; null if the model itself was asked.

In `memo`, these are the comparators, and with `memo.exact=selection` `memo_low` and `memo_high`
before them. A row whose MEMO lies between the two has no `memo`, and a row with a `memo` has it in
both.
"""

SCHEMAS["remaining"] = SCHEMAS["facts"]

TRUE_ANSWER = -1
"""The `candidate_id` of the true answer, which `memo` scores together with the candidates."""

KEYS: dict[str, tuple[str, ...]] = {
    "facts": ("fact_id",),
    "remaining": ("fact_id",),
    "candidates": ("fact_id", "candidate_id"),
    "paraphrases": ("fact_id", "paraphrase_id"),
    "neighbours": ("fact_id", "neighbour_id"),
    "twins": ("fact_id", "twin_id"),
    "memo": ("fact_id", "candidate_id"),
    "selected": ("fact_id", "rank"),
    "reference": ("role", "fact_id", "question", "answer"),
    "guesses": ("role", "fact_id", "question", "answer"),
    "metrics": ("suite", "metric", "model"),
    "audit": ("attack", "variant", "model", "group", "fact_id"),
}
"""The columns that identify a row of each artifact that is a table."""

REJECTS_SCHEMA = pa.schema(
    [("file", pa.string()), ("line", pa.int64()), ("split", pa.string()), ("reason", pa.string())]
)
"""Rows that `ingest` refused. `line` counts from 1, in Parquet files and datasets the rows."""

MEASURES = (
    "memo",
    "rougeL_recall",
    "probability",
    "truth_ratio",
    "leak",
    "exact_memorization",
    "extraction_strength",
    "extraction_likelihood",
    "rep3",
    "bleu",
    "states_inverted",
)
"""Metrics whose value is a mean over examples, in the order in which tables show them."""

EVALUATED_MODELS = ("before", "after", "retain_model")
"""What `metrics` calls the target, the tuned model, and the model that never saw the forget set."""

EXAMPLES_SCHEMA = pa.schema(
    [
        *(
            (name, pa.string())
            for name in ("suite", "fact_id", "model", "question", "start", "answer", "generated")
        ),
        *((name, pa.float64()) for name in MEASURES),
        ("loss", pa.float64()),
        ("num_tokens", pa.int32()),
        ("paraphrased_loss", pa.float64()),
        ("perturbed_losses", pa.list_(pa.float64())),
        *((name, pa.float64()) for name in ("zlib", "min_k", "min_k_pp", "fact_log_prob")),
    ]
)
"""The examples that `metrics` summarises: one row per example and model; null if not measured.

Losses are means over tokens, in nats. `fact_log_prob` is the mean log-probability of the tokens
that carry the fact. `truth_ratio` is the value that counts for the example, see
`tofu.truth_scores`. `probability` is normalised over the answer options in TOFU's sets that require
it.
"""

CANDIDATE_REJECTS_SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("number", pa.int32()),
        ("attempt", pa.int32()),
        ("style", pa.string()),
        ("reason", pa.string()),
        ("text", pa.string()),
    ]
)
"""Proposals that `invert` refused, with the rule that each one breaks. `number` counts the refused
proposals of a fact from 0."""

PAIR_REJECTS_SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("number", pa.int32()),
        ("reason", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
    ]
)
"""Pairs that `neighbours` or `twins` refused. `number` counts those of a fact from 0."""

PARAPHRASE_REJECTS_SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("number", pa.int32()),
        ("source", pa.string()),
        ("attempt", pa.int32()),
        ("reason", pa.string()),
        ("question", pa.string()),
    ]
)
"""Rewordings that `paraphrases` refused. `number` counts those of a fact from 0; `attempt` is the
message to the generator that it came from, or null."""

SHORTFALL_SCHEMA = pa.schema(
    [("fact_id", pa.string()), ("num_candidates", pa.int32()), ("reasons", pa.string())]
)
"""Facts with too few candidates, and the reasons why their other proposals were refused."""

AUDIT_SUMMARY_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("attack", "variant", "tier")),
        ("num_facts", pa.int32()),
        ("num_controls", pa.int32()),
        *((name, pa.float64()) for name in SUMMARY_FIGURES),
        ("verdict", pa.string()),
        ("reason", pa.string()),
    ]
)
"""One row per attack and variant. `before`, `after` and `never_taught` are shares of facts that the
attack extracts; `excess` is `after` less `never_taught`, with its 95 % interval. `false_alarms` is
the share of extracted facts in the half of the controls that did not set the threshold. `reason` is
that of the verdict in words; if missing scores are the cause, it is their most common `reason` in
`audit`."""

VERDICTS_SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("tier", pa.string()),
        ("verdict", pa.string()),
        ("attack", pa.string()),
        ("variant", pa.string()),
        ("share_of_before", pa.float64()),
        ("reason", pa.string()),
    ]
)
"""One row per fact and tier: the verdict, and the attack that got most from the tuned model.
`share_of_before` is the part of what that attack gets from the original model beyond facts never
taught. `reason` is as in `AUDIT_SUMMARY_SCHEMA`."""

REPLIES_SCHEMA = pa.schema([("reply", pa.string()), ("prompt", pa.string()), ("text", pa.string())])
"""The evidence of an audit: the best reply of each row that has one. It holds text of facts."""


ROW = "row_id"
"""Column that identifies a row of the work that a stage gives to its engines."""
