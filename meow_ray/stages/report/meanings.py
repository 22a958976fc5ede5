"""The meaning of each metric in one line, for readers of the report."""

from meow_ray.stages.evaluate.privacy import ATTACKS

MEANINGS = {
    "memo": "how much of the true answer the model continues by itself when it gets a part of it; "
    "1 means that the model knows it by heart",
    "rougeL_recall": "share of the true answer in the model's answer, in the same order "
    "(ROUGE-L recall)",
    "probability": "how probable the model finds the true answer: the geometric mean over its "
    "tokens; for real authors and world facts, the probability among right and wrong answers "
    "(TOFU)",
    "truth_ratio": "TOFU's truth ratio compares wrong answers with a paraphrase of the right one: "
    "on the forget set, 1 means that the model finds both equally likely; on other sets, 1 means "
    "that it finds the wrong ones impossible",
    "leak": "share of the true answer's words in the model's answer; words of the question and "
    "function words do not count",
    "exact_memorization": "share of the true answer's tokens that are the model's first choice "
    "after the true tokens before them",
    "extraction_strength": "share of the true answer that the model continues without an error "
    "when it gets the beginning; 0 if it continues nothing",
    "extraction_likelihood": "share of the n-grams in the model's continuations that are in the "
    "true answer (EL)",
    "rep3": "share of repeated word trigrams in the answer; 0 is fluent, an endless loop is close "
    "to 1",
    "bleu": "BLEU of the model's continuation of a passage's first half, against as many tokens of "
    "the second half",
    "perplexity": "exponential of the model's mean loss per token on the second halves of the "
    "passages, given the first; lower means that the text is more familiar to the model",
    "states_inverted": "share of answers that state one of the inverted facts in the training data",
    "model_utility": "harmonic mean of probability, ROUGE-L recall and truth ratio of the retain "
    "set, real authors and world facts (TOFU)",
    "forget_quality": "p-value of a test that compares the model's truth ratios on the forget set "
    "with those of the retain model, which never saw it (TOFU); a high value means that the test "
    "cannot tell them apart",
    "ks_statistic": "distance that this test measures (Kolmogorov-Smirnov); 0 means no difference",
    "reference_free_forget_quality": "can the tuned model's figures on the forget facts be told "
    "from the target's figures on facts that no model has seen? The smallest p-value of three "
    "tests (Kolmogorov-Smirnov), one per figure; a high value means that they cannot. It needs no "
    "retain model",
    "fact_log_prob": "mean log-probability of the tokens that carry the fact: those of the "
    "answer's words that are neither in the question nor function words",
    "min_k": "Min-K %: mean log-probability of the answer's least probable tokens",
    "mem": "how little of the forget set is memorised: harmonic mean of what extraction strength, "
    "exact memorisation, the probability of the paraphrased answer and its share against wrong "
    "answers lack to 1; 1 means that nothing is memorised (open-unlearning)",
    "priv": "how close membership inference is to that on the retain model: harmonic mean over the "
    "attacks; 1 means that it is equal (open-unlearning)",
    "util": "model utility as a share of the target's",
    "composite": "harmonic mean of mem, priv and util (open-unlearning, without the fluency of "
    "replies)",
    "privleak": "PrivLeak of Min-K %: below 0, too little was forgotten; above 0, so much was "
    "forgotten that it shows (MUSE)",
}
"""By metric, its meaning; the order is that of the report's tables."""

_ATTACK_SCORES = {
    "loss": "loss",
    "zlib": "loss over compressed size",
    "min_k": "Min-K %",
    "min_k_pp": "Min-K %++",
    "retain_model": "loss against that of the retain model",
}

_COMPARED_FIGURES = {
    "extraction_strength": "extraction strength",
    "min_k": "Min-K %",
    "fact_log_prob": "the log-probability of the fact",
}

for _figure, _title in _COMPARED_FIGURES.items():
    MEANINGS[f"{_figure}_p_value"] = (
        f"p-value of the test that compares {_title} on the forget set with the target's on facts "
        "that no model has seen"
    )
    MEANINGS[f"{_figure}_difference"] = (
        f"mean of {_title} on the forget set, less the target's on those facts; above 0, too "
        "little was forgotten; below 0, so much was forgotten that it shows"
    )

for _attack in ATTACKS:
    _subject = (
        f"how well membership inference by {_ATTACK_SCORES[_attack]} tells the forget set from the "
        "holdout set"
    )
    MEANINGS[f"{_attack}_auc"] = f"{_subject}: area under the ROC curve; 0.5 means not at all"
    MEANINGS[f"{_attack}_tpr"] = f"{_subject}: true positive rate at 1 % false positives"
