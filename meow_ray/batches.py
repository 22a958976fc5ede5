"""What an actor does with a batch of rows: write inverted facts, evaluate."""

import json
from collections import Counter
from typing import Any

import pyarrow as pa

from meow_ray import inversion, metrics, prompts
from meow_ray.config import Invert, Memo
from meow_ray.engines import Engine, Sampling
from meow_ray.inversion import Proposal
from meow_ray.prompts import Prompter
from meow_ray.scoring import MemoSteps
from meow_ray.text import novel_words, written_words

_CANDIDATES = pa.list_(pa.struct([("text", pa.string()), ("attempt", pa.int32()), ("seed", pa.int64())]))


def invert_batch(engine: Engine, batch: pa.Table, spec: Invert) -> pa.Table:
    """Writes inverted facts for a batch of facts; asks again for those that have too few."""
    rows = batch.to_pylist()
    template = "chat" if getattr(engine.tokenizer, "chat_template", None) else "raw"
    prompter = Prompter(engine.tokenizer, template)
    texts: list[list[dict[str, Any]]] = [[] for _ in rows]
    rejected: list[Counter[str]] = [Counter() for _ in rows]
    for attempt in range(spec.max_attempts):
        pending = [i for i in range(len(rows)) if len(texts[i]) < spec.num_candidates]
        asked = [_ask(prompter, rows[i], spec, attempt) for i in pending]
        fits = [len(p) + s.max_new_tokens <= engine.max_model_len for p, s, _ in asked]
        for i, fit in zip(pending, fits, strict=True):
            if not fit:
                rejected[i]["prompt_too_long"] += 1
        jobs = [(i, job) for i, job, fit in zip(pending, asked, fits, strict=True) if fit]
        replies = engine.generate([job[0] for _, job in jobs], [job[1] for _, job in jobs])
        for (i, (_, sampling, head)), completions in zip(jobs, replies, strict=True):
            question, answer = rows[i]["question"], rows[i]["answer"]
            proposals: list[Proposal] = []
            for completion in completions:
                if spec.style == "chat":
                    proposals += inversion.parse_lines(completion.text, completion.finished)
                else:
                    proposals.append(Proposal((head + completion.text).strip(), completion.finished))
            taken = [item["text"] for item in texts[i]]
            valid, reasons = inversion.choose(proposals, question, answer, spec, taken)
            texts[i] += [{"text": text, "attempt": attempt, "seed": sampling.seed} for text in valid]
            rejected[i].update(reasons)
    out = batch.append_column("candidates", pa.array(texts, _CANDIDATES))
    return out.append_column("rejected", pa.array([json.dumps(dict(counts)) for counts in rejected], pa.string()))


def _ask(prompter: Prompter, row: dict[str, str], spec: Invert, attempt: int) -> tuple[list[int], Sampling, str]:
    """Returns prompt tokens, sampling, and the text that the answer begins with."""
    question, answer = row["question"], row["answer"]
    seed = inversion.fact_seed(spec.seed, row["fact_id"], attempt)
    common: dict[str, Any] = {"temperature": spec.temperature, "top_p": spec.top_p, "seed": seed}
    if spec.style == "chat":
        text = prompts.fill(
            spec.chat_prompt, "invert.chat_prompt", question=question, answer=answer, k=spec.num_candidates
        )
        limit = spec.max_new_tokens * spec.num_candidates
        return prompter.encode_prompt(_as_user(prompter, text)), Sampling(limit, **common), ""
    text = prompts.fill(spec.prefill_prompt, "invert.prefill_prompt", question=question, answer=answer)
    head = inversion.frame(question, answer)
    sampling = Sampling(
        spec.max_new_tokens,
        n=spec.samples,
        stop=("\n",),
        bad_words=tuple(written_words(answer, novel_words(answer, question))),
        **common,
    )
    return prompter.encode_prompt(_as_user(prompter, text) + head), sampling, head


def _as_user(prompter: Prompter, text: str) -> str:
    return prompter.chat([{"role": "user", "content": text}]) if prompter.template == "chat" else f"{text}\n"


def evaluate_batch(
    engine: Engine, batch: pa.Table, spec: Memo, template: str, system: str | None, max_new_tokens: int
) -> pa.Table:
    """Answers questions greedily and scores the true answers: columns generated, probability, memo."""
    rows = batch.to_pylist()
    prompter = Prompter(engine.tokenizer, template, system)
    questions = [prompter.encode_prompt(prompter.prompt(row["question"])) for row in rows]
    answers = [prompter.encode_answer(row["answer"]) for row in rows]
    replies = engine.generate(questions, [Sampling(max_new_tokens)] * len(rows))
    probabilities = [metrics.probability(one.log_probs) for one in engine.teacher_force(questions, answers)]
    scored = [i for i, row in enumerate(rows) if row["with_memo"]]
    pairs = [(rows[i]["question"], rows[i]["answer"]) for i in scored]
    found = dict(zip(scored, MemoSteps(spec, template, system).score(engine, pairs), strict=True))
    memos = [found[i]["memo"] if i in found else None for i in range(len(rows))]
    out = batch.append_column("generated", pa.array([reply[0].text for reply in replies], pa.string()))
    out = out.append_column("probability", pa.array(probabilities, pa.float64()))
    return out.append_column("memo", pa.array(memos, pa.float64()))
