"""Explanations by Captum and a clipped sum by Opacus, in float64: the numbers that tests/derivatives.rs compares with.

    python explanations.py > explanations.json      (pip install torch captum opacus numpy)

Grad-CAM, integrated gradients, saliency and input times gradient of a small CNN; per-sample gradients of a small MLP, clipped to a norm
and added up, as Opacus' DPOptimizer does before it adds noise.
"""
import json

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerGradCam, Saliency
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer

torch.set_default_dtype(torch.float64)
RNG = np.random.default_rng(5)


def tensor(value):
    value = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value, np.float64)
    return {"dims": list(value.shape), "values": value.ravel().tolist()}


def filled(module):
    """Weights of few digits."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.tensor(np.round(RNG.uniform(-0.6, 0.6, p.shape), 3)))
    return module


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3, padding=1)
        self.act = torch.nn.Softplus()
        self.pool = torch.nn.AvgPool2d(2)
        self.last = torch.nn.Conv2d(4, 3, 3, padding=1)
        self.act2 = torch.nn.Softplus()
        self.fc = torch.nn.Linear(3, 4)

    def forward(self, x):
        h = self.act2(self.last(self.pool(self.act(self.conv(x)))))
        return self.fc(h.mean((2, 3)))


def cnn():
    net = filled(Net())
    x = torch.tensor(np.round(RNG.uniform(-1, 1, (2, 2, 6, 6)), 3))
    baseline = torch.tensor(np.round(RNG.uniform(-0.2, 0.2, (2, 2, 6, 6)), 3))
    target = torch.tensor([2, 0])
    cam = LayerGradCam(net, net.act2).attribute(x, target=target, relu_attributions=True)
    found = IntegratedGradients(net).attribute(x, baselines=baseline, target=target, n_steps=50, method="gausslegendre")
    graph = ("g (double[N,2,H,W] x, double[4,2,3,3] k1, double[4] b1, double[3,4,3,3] k2, double[3] b2, double[4,3] w, double[4] b)"
             " => (double[N,4] scores) { c1 = Conv<pads=[1,1,1,1]>(x, k1, b1) s1 = Softplus(c1)"
             " p1 = AveragePool<kernel_shape=[2,2], strides=[2,2]>(s1) c2 = Conv<pads=[1,1,1,1]>(p1, k2, b2) s2 = Softplus(c2)"
             " m = GlobalAveragePool(s2) f = Flatten(m) wt = Transpose(w) scoresm = MatMul(f, wt) scores = Add(scoresm, b) }")
    weights = zip(["k1", "b1", "k2", "b2", "w", "b"], net.parameters())
    return {
        "graph": graph,
        "inputs": {"x": tensor(x), **{name: tensor(p) for name, p in weights}},
        "baseline": tensor(baseline),
        "class": target.tolist(),
        "saliency": tensor(Saliency(net).attribute(x, target=target).amax(1)),
        "input-x-gradient": tensor(InputXGradient(net).attribute(x, target=target)),
        "integrated-gradients": tensor(found),
        "grad-cam": tensor(cam[:, 0]),
    }


def dp_sgd():
    net = filled(torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)))
    x, label = torch.tensor(np.round(RNG.uniform(-2, 2, (4, 3)), 3)), torch.tensor([0, 2, 1, 1])
    bound, wrapped = 0.8, GradSampleModule(net, loss_reduction="sum")
    optimizer = DPOptimizer(torch.optim.SGD(wrapped.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=bound,
                            expected_batch_size=4, loss_reduction="sum")
    torch.nn.functional.cross_entropy(wrapped(x), label, reduction="sum").backward()
    names = ["w1", "b1", "w2", "b2"]
    each = dict(zip(names, (tensor(p.grad_sample) for p in wrapped.parameters())))
    optimizer.clip_and_accumulate()
    graph = ("g (double[N,3] x, int64[N] label, double[5,3] w1, double[5] b1, double[3,5] w2, double[3] b2) => (double loss) {"
             " w1t = Transpose(w1) am = MatMul(x, w1t) a = Add(am, b1) h = Tanh(a) w2t = Transpose(w2) ym = MatMul(h, w2t)"
             " y = Add(ym, b2) loss = SoftmaxCrossEntropyLoss(y, label) }")
    return {
        "graph": graph,
        "inputs": {"x": tensor(x), **dict(zip(names, map(tensor, net.parameters())))},
        "label": label.tolist(),
        "bound": bound,
        "each": each,
        "clipped": dict(zip(names, (tensor(p.summed_grad) for p in wrapped.parameters()))),
    }


print(json.dumps({"cnn": cnn(), "dp-sgd": dp_sgd()}))
