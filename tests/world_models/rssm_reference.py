"""The recurrent state-space model's equations, one step at a time in float64 (numpy).

States are (B, R) and (B, S·K), logits (B, S, K), `w` is what `weights` reads from an RSSM.
"""

import numpy as np

K = 3
"""Classes of each variable in these tests."""


def elu(x):
    return np.where(x > 0, x, np.expm1(x))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def weights(rssm):
    return {n: p.detach().double().numpy() for n, p in rssm.named_parameters()}


def recur(w, stochastic, action, deterministic):
    inputs = stochastic @ w["input_stochastic.weight"].T + w["input_stochastic.bias"]
    inputs = inputs + action @ w["input_action.weight"].T
    gates = np.concatenate([inputs, deterministic], -1) @ w["cell.gates.weight"].T
    gates = gates + w.get("cell.gates.bias", 0.0)
    mean, variance = gates.mean(-1, keepdims=True), gates.var(-1, keepdims=True)
    gates = (gates - mean) / np.sqrt(variance + 1e-3) * w["cell.norm.weight"] + w["cell.norm.bias"]
    reset, candidate, update = np.split(gates, 3, axis=-1)
    update = sigmoid(update - 1.0)
    return update * np.tanh(sigmoid(reset) * candidate) + (1.0 - update) * deterministic


def prior(w, deterministic):
    hidden = elu(deterministic @ w["prior_hidden.weight"].T + w["prior_hidden.bias"])
    return (hidden @ w["prior_logits.weight"].T + w["prior_logits.bias"]).reshape(
        len(deterministic), -1, K
    )


def posterior(w, deterministic, embedding):
    hidden = deterministic @ w["posterior_deterministic.weight"].T
    hidden = hidden + w["posterior_deterministic.bias"]
    hidden = elu(hidden + embedding @ w["posterior_embedding.weight"].T)
    return (hidden @ w["posterior_logits.weight"].T + w["posterior_logits.bias"]).reshape(
        len(deterministic), -1, K
    )


def one_hot(logits, noise):
    return np.eye(K)[(softmax(logits) / noise).argmax(-1)].reshape(len(logits), -1)


def straight_through(logits, noise, given):
    """One-hot samples (B, S·K) that move as the softmax does; `given` keeps what was drawn."""
    probabilities = softmax(logits).reshape(len(logits), -1)
    drawn = given.setdefault("drawn", one_hot(logits, noise))
    return drawn + probabilities - given.setdefault("probabilities", probabilities)
