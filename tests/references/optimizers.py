"""Twenty steps of each optimizer in float64, after PyTorch's documented update rules (torch.optim, and the papers of LAMB and Lion).

Writes optimizers.json: python optimizers.py. Nothing but NumPy is used; the gradients are given, so that only the rules count.
"""
import json
import os

import numpy as np

STEPS, LR = 20, 0.05
rng = np.random.default_rng(7)
W = rng.standard_normal((3, 4))
GRADIENTS = rng.standard_normal((STEPS, 3, 4)) * np.linspace(0.2, 2.0, STEPS)[:, None, None]


def sgd(w, g, s, t, lr, h):
    return w - lr * (g + h["weight_decay"] * w)


def momentum(w, g, s, t, lr, h):
    g = g + h["weight_decay"] * w
    s["b"] = g.copy() if t == 1 else h["momentum"] * s["b"] + g
    return w - lr * s["b"]


def nesterov(w, g, s, t, lr, h):
    g = g + h["weight_decay"] * w
    s["b"] = g.copy() if t == 1 else h["momentum"] * s["b"] + g
    return w - lr * (g + h["momentum"] * s["b"])


def rmsprop(w, g, s, t, lr, h):
    g = g + h["weight_decay"] * w
    s["v"] = h["momentum"] * s.get("v", 0) + (1 - h["momentum"]) * g * g
    return w - lr * g / (np.sqrt(s["v"]) + h["epsilon"])


def adagrad(w, g, s, t, lr, h):
    g = g + h["weight_decay"] * w
    s["s"] = s.get("s", 0) + g * g
    return w - lr * g / (np.sqrt(s["s"]) + h["epsilon"])


def moments(g, s, t, h):
    s["m"] = s.get("m", 0) + (g - s.get("m", 0)) * (1 - h["beta1"])
    s["v"] = h["beta2"] * s.get("v", 0) + (1 - h["beta2"]) * g * g
    return s["m"] / (1 - h["beta1"] ** t), s["v"] / (1 - h["beta2"] ** t)


def adam(w, g, s, t, lr, h):
    m, v = moments(g + h["weight_decay"] * w, s, t, h)
    return w - lr * m / (np.sqrt(v) + h["epsilon"])


def adamw(w, g, s, t, lr, h):
    w = w * (1 - lr * h["weight_decay"])
    m, v = moments(g, s, t, h)
    return w - lr * m / (np.sqrt(v) + h["epsilon"])


def lamb(w, g, s, t, lr, h):
    m, v = moments(g, s, t, h)
    r = m / (np.sqrt(v) + h["epsilon"]) + h["weight_decay"] * w
    a, b = np.linalg.norm(w), np.linalg.norm(r)
    return w - lr * (a / b if a > 0 and b > 0 else 1.0) * r


def lion(w, g, s, t, lr, h):
    m = s.get("m", np.zeros_like(w))
    w = w * (1 - lr * h["weight_decay"])
    w = w - lr * np.sign(h["beta1"] * m + (1 - h["beta1"]) * g)
    s["m"] = h["beta2"] * m + (1 - h["beta2"]) * g
    return w


BASE = dict(momentum=0.9, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)
RULES = {
    "sgd": (sgd, {}),
    "momentum": (momentum, {}),
    "nesterov": (nesterov, {}),
    "rmsprop": (rmsprop, dict(momentum=0.99)),
    "adagrad": (adagrad, dict(epsilon=1e-10)),
    "adam": (adam, {}),
    "adamw": (adamw, dict(weight_decay=0.01)),
    "lamb": (lamb, dict(weight_decay=0.01, epsilon=1e-6)),
    "lion": (lion, dict(beta2=0.99)),
}

cases = []
for name, (rule, own) in RULES.items():
    for decay in (None, 0.1):
        hyper = {**BASE, **own, **({} if decay is None else dict(weight_decay=decay))}
        w, state, path = W.copy(), {}, []
        for t in range(1, STEPS + 1):
            w = rule(w, GRADIENTS[t - 1], state, t, LR, hyper)
            path.append(w.ravel().tolist())
        cases.append(dict(optimizer=name, hyper=hyper, path=path))

here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "optimizers.json"), "w") as out:
    json.dump(dict(lr=LR, shape=list(W.shape), w=W.ravel().tolist(), gradients=[g.ravel().tolist() for g in GRADIENTS], cases=cases), out)
    out.write("\n")
