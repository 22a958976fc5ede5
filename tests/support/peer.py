"""open-unlearning's metrics of an answer, from a model's logits, written independently of ours.

The formulas follow its code (`src/evals/metrics`): labels are the tokens of an answer with the
end-of-sequence token, and metrics over tokens leave the last label out.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

EPSILON = 1e-10


def answer_metrics(
    network: Any, prompt: Sequence[int], labels: Sequence[int], text: str, k: float
) -> dict[str, float]:
    """Returns the metrics of one answer.

    Args:
        network: a causal language model.
        prompt: tokens of the prompt.
        labels: tokens of the answer, with the end.
        text: text of the answer.
        k: share of the tokens that Min-K % and Min-K %++ read.
    """
    import torch

    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *labels]])).logits[0].float()
    vocabulary = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)  # [label, vocab]
    label_ids = torch.tensor(labels)
    log_p = vocabulary[torch.arange(len(labels)), label_ids]
    loss = float(-log_p.mean())

    body = log_p[:-1]
    is_right = vocabulary[:-1].argmax(-1) == label_ids[:-1]
    first = next((i for i in range(len(body)) if is_right[i:].all()), len(body) - 1)

    p = vocabulary[:-1].exp()
    mean = (p * vocabulary[:-1]).sum(-1)
    variance = (p * vocabulary[:-1] ** 2).sum(-1) - mean**2
    standardised = (body - mean) / variance.clamp(min=1e-6).sqrt()
    count = max(1, int(len(body) * k))
    return {
        "loss": loss,
        "probability": math.exp(-loss),
        "exact_memorization": float(is_right.float().mean()),
        "extraction_strength": 1 - first / len(body),
        "min_k": -float(body.sort().values[:count].mean()),
        "min_k_pp": -float(standardised.sort().values[:count].mean()),
        "zlib": loss / len(zlib.compress(text.encode())),
    }


def greedy_recall(
    network: Any, tokenizer: Any, prompt: Sequence[int], answer: str, max_new_tokens: int
) -> float:
    """Returns the ROUGE-L recall of the greedy reply, by the package `rouge_score`."""
    import torch
    from rouge_score.rouge_scorer import RougeScorer

    output = network.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    reply = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip()
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(answer, reply)["rougeL"].recall)


def truth_ratio(right_loss: float, wrong_losses: Sequence[float]) -> float:
    """Returns wrong / right."""
    wrong = math.exp(-sum(wrong_losses) / len(wrong_losses))
    return wrong / (math.exp(-right_loss) + EPSILON)


def truth_score(suite: str, ratio: float) -> float:
    """Returns what `closer_to_1_better` or `true_better` average."""
    return min(ratio, 1 / (ratio + EPSILON)) if suite == "forget" else max(0.0, 1 - ratio)


def probability_among_options(right_loss: float, wrong_losses: Sequence[float]) -> float:
    """Returns right / (right + wrong)."""
    right = math.exp(-right_loss)
    return right / (right + sum(math.exp(-loss) for loss in wrong_losses) + EPSILON)


def auc(forget: Sequence[float], holdout: Sequence[float]) -> float:
    """Returns the probability that a forget example has the lower score; ties count half."""
    pairs = [
        (inside < outside) + (inside == outside) / 2 for inside in forget for outside in holdout
    ]
    return sum(pairs) / len(pairs)


def privleak(forget_auc: float, retain_auc: float) -> float:
    """Returns PrivLeak in percent."""
    score, reference = 1 - forget_auc, 1 - retain_auc
    return (score - reference) / (reference + EPSILON) * 100
