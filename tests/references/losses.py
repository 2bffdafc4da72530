"""Each loss in float64, after PyTorch's documented definitions, with its gradient by central differences of fourth order.

Writes losses.json: python losses.py. Nothing but NumPy is used.
"""
import json
import os

import numpy as np

rng = np.random.default_rng(11)
N, C = 5, 4


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def nll(log, t, weights=None, ignore=-100, smoothing=0.0):
    """torch.nn.functional.cross_entropy with class indices, from logarithms of probabilities."""
    w = np.ones(C) if weights is None else np.asarray(weights)
    total = mass = 0.0
    for row, label in zip(log, t):
        if label == ignore:
            continue
        total += (1 - smoothing) * -w[label] * row[label] + smoothing / C * (-(w * row)).sum()
        mass += w[label]
    return total / mass


def soft(x, t, weights=None, smoothing=0.0):
    w = np.ones(C) if weights is None else np.asarray(weights)
    t = t * (1 - smoothing) + smoothing / C
    return -(w * t * log_softmax(x)).sum() / len(x)


def bce(p, t):
    return -(t * np.maximum(np.log(p), -100) + (1 - t) * np.maximum(np.log(1 - p), -100)).mean()


def bce_logits(x, t):
    return (np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x)))).mean()


def huber(x, t, delta=1.0):
    d = np.abs(x - t)
    return np.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta)).mean()


def kl(x, t):
    """kl_div with reduction batchmean: x are logarithms of probabilities."""
    return np.where(t > 0, t * (np.log(np.where(t > 0, t, 1)) - x), 0).sum() / len(x)


def cosine(x, t, y, margin=0.0):
    cos = (x * t).sum(1) / np.sqrt(((x * x).sum(1) + 1e-12) * ((t * t).sum(1) + 1e-12))
    return np.where(y > 0, 1 - cos, np.maximum(0, cos - margin)).mean()


def gradient(f, x, h=1e-3):
    g = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        def at(k):
            y = x.copy()
            y[i] += k * h
            return f(y)
        g[i] = (at(-2) - 8 * at(-1) + 8 * at(1) - at(2)) / (12 * h)
    return g


X = rng.standard_normal((N, C)) * 2
HARD = np.array([0, 3, 1, 2, 3])
IGNORED = np.array([0, -100, 1, 2, -100])
SOFT = rng.random((N, C)); SOFT /= SOFT.sum(1, keepdims=True)
ZERO = SOFT.copy(); ZERO[0, 0] = 0
P = rng.random((N, C)) * 0.9 + 0.05
BITS = (rng.random((N, C)) > 0.5).astype(float)
T = rng.standard_normal((N, C))
Y = np.array([1.0, -1.0, 1.0, -1.0, -1.0])
LOG = log_softmax(X)
WEIGHTS = [0.5, 1, 2, 1.5]

cases = []


def case(loss, f, x, h=1e-3, **targets):
    cases.append(dict(
        loss=loss, shape=list(x.shape), x=x.ravel().tolist(),
        targets={n: dict(shape=list(v.shape), integer=v.dtype.kind == "i", values=v.ravel().tolist()) for n, v in targets.items()},
        value=float(f(x)), gradient=gradient(f, x, h).ravel().tolist()))


case("cross-entropy", lambda x: nll(log_softmax(x), HARD), X, labels=HARD)
case("cross-entropy,class-weights=0.5/1/2/1.5", lambda x: nll(log_softmax(x), HARD, WEIGHTS), X, labels=HARD)
case("cross-entropy,smoothing=0.1", lambda x: nll(log_softmax(x), HARD, smoothing=0.1), X, labels=HARD)
case("cross-entropy,ignore=-100", lambda x: nll(log_softmax(x), IGNORED), X, labels=IGNORED)
case("cross-entropy,ignore=-100,smoothing=0.2,class-weights=0.5/1/2/1.5",
     lambda x: nll(log_softmax(x), IGNORED, WEIGHTS, smoothing=0.2), X, labels=IGNORED)
case("cross-entropy,soft", lambda x: soft(x, SOFT), X, labels=SOFT)
case("cross-entropy,soft,smoothing=0.1,class-weights=0.5/1/2/1.5", lambda x: soft(x, SOFT, WEIGHTS, 0.1), X, labels=SOFT)
case("nll", lambda x: nll(x, HARD), LOG, labels=HARD)
case("nll,class-weights=0.5/1/2/1.5,ignore=-100", lambda x: nll(x, IGNORED, WEIGHTS), LOG, labels=IGNORED)
case("bce", lambda x: bce(x, BITS), P, labels=BITS)
case("bce-with-logits", lambda x: bce_logits(x, BITS), X, labels=BITS)
case("mse", lambda x: ((x - T) ** 2).mean(), X, labels=T)
case("mse,sum", lambda x: ((x - T) ** 2).sum(), X, labels=T)
case("mae", lambda x: np.abs(x - T).mean(), X, labels=T)
case("huber", lambda x: huber(x, T), X, labels=T)
case("huber,delta=0.3", lambda x: huber(x, T, 0.3), X, labels=T)
case("kl-divergence", lambda x: kl(x, ZERO), LOG, labels=ZERO)
case("cosine-embedding", lambda x: cosine(x, T, Y), X, targets=T, labels=Y)
case("cosine-embedding,margin=0.2", lambda x: cosine(x, T, Y, 0.2), X, targets=T, labels=Y)



def summed(x, t, ignore=None, smoothing=0.0):
    """cross_entropy with reduction sum."""
    keep = np.ones(len(t)) if ignore is None else (t != ignore).astype(float)
    log = log_softmax(x)
    picked = log[np.arange(len(t)), np.where(keep > 0, t, 0)]
    return -(keep * ((1 - smoothing) * picked + smoothing * log.mean(1))).sum()


case("cross-entropy,sum,ignore=-100,smoothing=0.2", lambda x: summed(x, IGNORED, -100, 0.2), X, labels=IGNORED)
case("cross-entropy,sum,soft", lambda x: soft(x, SOFT) * N, X, labels=SOFT)
case("nll,sum,class-weights=0.5/1/2/1.5", lambda x: nll(x, HARD, WEIGHTS) * np.take(WEIGHTS, HARD).sum(), LOG, labels=HARD)
case("bce,sum", lambda x: bce(x, BITS) * x.size, P, labels=BITS)
case("bce-with-logits,sum", lambda x: bce_logits(x, BITS) * x.size, X, labels=BITS)
case("mae,sum", lambda x: np.abs(x - T).sum(), X, labels=T)
case("huber,sum,delta=0.3", lambda x: huber(x, T, 0.3) * x.size, X, h=1e-5, labels=T)
case("kl-divergence,sum", lambda x: kl(x, ZERO) * N, LOG, labels=ZERO)
case("cosine-embedding,sum,margin=0.2", lambda x: cosine(x, T, Y, 0.2) * N, X, targets=T, labels=Y)

here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "losses.json"), "w") as out:
    json.dump(cases, out)
    out.write("\n")
