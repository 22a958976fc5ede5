"""The other side of `benchmarks.peers`: evaluation and training on plain transformers.

Settings are those of open-unlearning's published configuration (locuslab/open-unlearning,
`configs/eval/tofu_metrics`, `configs/generation`, `configs/trainer/finetune.yaml`). The module
shares no code with `meow_ray`. It runs as a program:
`python -m benchmarks.peer_sides evaluate|train INPUT.json OUTPUT.json`.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

EVALUATION_BATCH = 32
"""Rows of one forward pass, and of one call that generates."""
IGNORE = -100
"""Label of a token without a loss."""
PROMPT = "[INST] {question} [/INST]"
EPSILON = 1e-10
"""What open-unlearning adds to denominators."""

Row = Mapping[str, Any]
"""A row of a perturbed file of TOFU."""
Example = dict[str, list[int]]
"""`input_ids` and `labels` of a prompt and its answer, both `[seq]`."""


# --- evaluation -----------------------------------------------------------------------------------


def evaluate(
    *, model: str, dtype: str, max_new_tokens: int, sets: Mapping[str, Sequence[Row]]
) -> dict[str, Any]:
    """Measures a model on sets of questions, metric by metric.

    Args:
        model: a folder.
        dtype: of the weights, such as `float32`.
        max_new_tokens: longest reply.
        sets: the rows of each set.

    Returns:
        When the model was loaded (`ready`), and the values of each row of each set (`sets`).
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = _load(model, dtype).eval()
    ready = time.time()
    found = {
        name: _evaluate_set(network, tokenizer, rows, name, max_new_tokens)
        for name, rows in sets.items()
    }
    return {"ready": ready, "sets": found}


def _load(model: str, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def _evaluate_set(
    network: Any, tokenizer: Any, rows: Sequence[Row], name: str, max_new_tokens: int
) -> list[dict[str, Any]]:
    """Returns the values of each row: one pass per metric, as the metrics are configured."""
    losses = _losses_of(network, tokenizer, rows, [row["answer"] for row in rows])
    right = _losses_of(network, tokenizer, rows, [row["paraphrased_answer"] for row in rows])
    num_wrong = min(len(row["perturbed_answer"]) for row in rows)
    wrong = [
        _losses_of(network, tokenizer, rows, [row["perturbed_answer"][i] for row in rows])
        for i in range(num_wrong)
    ]
    replies = generate(network, tokenizer, rows, max_new_tokens)
    recalls = _rouge_recalls([row["answer"] for row in rows], replies)
    return [
        {
            "loss": losses[i],
            "probability": math.exp(-losses[i]),
            "truth_ratio": truth_score(name, right[i], [column[i] for column in wrong]),
            "generated": replies[i],
            "rougeL_recall": recalls[i],
        }
        for i in range(len(rows))
    ]


def _losses_of(
    network: Any, tokenizer: Any, rows: Sequence[Row], answers: Sequence[str]
) -> list[float]:
    examples = [
        encode(tokenizer, row["question"], answer)
        for row, answer in zip(rows, answers, strict=True)
    ]
    return answer_losses(network, examples, tokenizer.eos_token_id)


def encode(tokenizer: Any, question: str, answer: str) -> Example:
    """Returns the tokens of a question in the prompt and of its answer, with the end."""
    prompt = tokenizer(PROMPT.format(question=question))["input_ids"]
    target = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": prompt + target, "labels": [IGNORE] * len(prompt) + target}


def answer_losses(network: Any, examples: Sequence[Example], pad: int) -> list[float]:
    """Returns the mean loss of each answer's tokens, in batches that are padded on the right."""
    import torch

    losses: list[float] = []
    for start in range(0, len(examples), EVALUATION_BATCH):
        batch = examples[start : start + EVALUATION_BATCH]
        ids = _padded([row["input_ids"] for row in batch], pad).to(network.device)
        labels = _padded([row["labels"] for row in batch], IGNORE).to(network.device)
        mask = _padded([[1] * len(row["input_ids"]) for row in batch], 0).to(network.device)
        with torch.no_grad():
            logits = network(input_ids=ids, attention_mask=mask).logits.float()
        token_losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
        )
        num_tokens = (labels[:, 1:] != IGNORE).sum(-1)
        losses += (token_losses.sum(-1) / num_tokens).tolist()
    return losses


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Any:
    """Returns a matrix of rows that are padded to the longest."""
    import torch

    width = max(map(len, rows))
    padding = [[value] * (width - len(row)) for row in rows]
    pairs = zip(padding, rows, strict=True)
    return torch.tensor([[*fill, *row] if left else [*row, *fill] for fill, row in pairs])


def generate(network: Any, tokenizer: Any, rows: Sequence[Row], max_new_tokens: int) -> list[str]:
    """Returns the greedy reply to each question, in batches that are padded on the left."""
    import torch

    pad = tokenizer.eos_token_id
    replies: list[str] = []
    for start in range(0, len(rows), EVALUATION_BATCH):
        texts = [
            PROMPT.format(question=row["question"])
            for row in rows[start : start + EVALUATION_BATCH]
        ]
        prompts = [tokenizer(text)["input_ids"] for text in texts]
        ids = _padded(prompts, pad, left=True).to(network.device)
        mask = _padded([[1] * len(prompt) for prompt in prompts], 0, left=True).to(network.device)
        with torch.no_grad():
            output = network.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                top_p=None,
                temperature=None,
                use_cache=True,
                pad_token_id=pad,
            )
        replies += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def _rouge_recalls(answers: Sequence[str], replies: Sequence[str]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(answers, replies, strict=True)
    return [float(scorer.score(answer, reply)["rougeL"].recall) for answer, reply in pairs]


def truth_score(name: str, right: float, wrong: Sequence[float]) -> float:
    """Returns what open-unlearning averages of a row's truth ratio.

    Args:
        name: the set; on `forget` a ratio near 1 is best, elsewhere a small one.
        right: loss of the paraphrased answer.
        wrong: losses of the wrong answers.
    """
    ratio = math.exp(-sum(wrong) / len(wrong)) / (math.exp(-right) + EPSILON)
    return min(ratio, 1 / (ratio + EPSILON)) if name == "forget" else max(0.0, 1 - ratio)


# --- training -------------------------------------------------------------------------------------


def train(
    *,
    model: str,
    dtype: str,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    gradient_checkpointing: bool,
    examples: Sequence[Example],
) -> dict[str, Any]:
    """Fine-tunes a model on examples in their order, with the Trainer of transformers.

    Args:
        model: a folder.
        dtype: `bfloat16` trains in mixed precision.
        batch_size: examples of an optimiser step, all in one forward pass.
        learning_rate: at the first step; it falls linearly.
        weight_decay: of AdamW.
        gradient_checkpointing: whether activations are computed twice to save memory.
        examples: the training set.

    Returns:
        When the model was loaded (`ready`), when the last step was done (`trained`), and the loss
        of each step (`losses`).
    """
    import torch
    from transformers import (
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    losses: list[float] = []
    began: list[float] = []

    class Recorder(Trainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            began.append(time.time())

    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = [{**example, "attention_mask": [1] * len(example["labels"])} for example in examples]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            bf16=dtype == "bfloat16",
            gradient_checkpointing=gradient_checkpointing,
            optim="adamw_torch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="sequential",
        )
        collator = DataCollatorForSeq2Seq(tokenizer)
        trainer = Recorder(_load(model, "float32"), arguments, collator, rows, callbacks=[Clock()])
        trainer.train()
        trained = time.time()
        trainer.save_model(folder)
    return {"ready": began[0], "trained": trained, "losses": losses}


# --- the program ----------------------------------------------------------------------------------

SIDES: dict[str, Callable[..., dict[str, Any]]] = {"evaluate": evaluate, "train": train}


def main(name: str, source: str, target: str) -> None:
    """Runs a side on the arguments in a JSON file, and writes what it returns as JSON."""
    arguments = json.loads(Path(source).read_text())
    Path(target).write_text(json.dumps(SIDES[name](**arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
