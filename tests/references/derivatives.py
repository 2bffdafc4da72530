"""Derivatives of small networks by JAX, in float64: the numbers that tests/derivatives.rs compares with.

    python derivatives.py > derivatives.json        (pip install jax numpy)

Each network is written twice, in ONNX's text syntax, where `real` stands for the element type, and as a function in JAX. `sizes` are
the shapes of a run, of which no symbol has the size of another run.
"""
import json

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

NETS = {}


def net(graph, xs, hessian, *runs, integers=None):
    def add(function):
        NETS[function.__name__] = (graph, function, xs, hessian, runs, integers or {})
        return function
    return add


@net("g (real[N,4] x, real[4,5] w1, real[5] b1, real[5,3] w2) => (real[N,3] y) {"
     " a = MatMul(x, w1) c = Add(a, b1) h = Tanh(c) y = MatMul(h, w2) }",
     ["x", "w1"], ["x", "w1"],
     dict(x=(2, 4), w1=(4, 5), b1=(5,), w2=(5, 3)), dict(x=(3, 4), w1=(4, 5), b1=(5,), w2=(5, 3)))
def mlp(x, w1, b1, w2):
    return jnp.tanh(x @ w1 + b1) @ w2


@net("g (real[N,1,4,4] x, real[3,1,3,3] k, real[3] b, real[12,2] w) => (real[N,2] y) {"
     " c = Conv<pads=[1,1,1,1]>(x, k, b) s = Softplus(c) p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(s)"
     " f = Flatten(p) y = MatMul(f, w) }",
     ["x", "k"], ["x"],
     dict(x=(2, 1, 4, 4), k=(3, 1, 3, 3), b=(3,), w=(12, 2)), dict(x=(1, 1, 4, 4), k=(3, 1, 3, 3), b=(3,), w=(12, 2)))
def convnet(x, k, b, w):
    c = jax.lax.conv_general_dilated(x, k, (1, 1), [(1, 1), (1, 1)]) + b[None, :, None, None]
    s = jax.nn.softplus(c)
    p = s.reshape(s.shape[0], s.shape[1], 2, 2, 2, 2).mean((3, 5))
    return p.reshape(p.shape[0], -1) @ w


@net("g (real[N,T,4] x, real[4] scale, real[4] bias, real[4,4] wq, real[4,4] wk, real[4,4] wv, real[4,6] w1, real[6,4] w2)"
     " => (real[N,T,4] y) <real half = {0.5}, real one = {1.0}, real root = {1.4142135623730951}> {"
     " n = LayerNormalization<axis=-1, epsilon=0.00001, stash_type=STASH>(x, scale, bias)"
     " q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv) kt = Transpose<perm=[0,2,1]>(k)"
     " s = MatMul(q, kt) sh = Mul(s, half) p = Softmax<axis=-1>(sh) o = MatMul(p, v) r = Add(x, o)"
     " h = MatMul(r, w1) hr = Div(h, root) e = Erf(hr) e1 = Add(e, one) he = Mul(h, e1) g = Mul(he, half)"
     " m = MatMul(g, w2) y = Add(r, m) }",
     ["x"], ["x"],
     dict(x=(2, 3, 4), scale=(4,), bias=(4,), wq=(4, 4), wk=(4, 4), wv=(4, 4), w1=(4, 6), w2=(6, 4)),
     dict(x=(1, 5, 4), scale=(4,), bias=(4,), wq=(4, 4), wk=(4, 4), wv=(4, 4), w1=(4, 6), w2=(6, 4)))
def transformer(x, scale, bias, wq, wk, wv, w1, w2):
    mean = x.mean(-1, keepdims=True)
    # ONNX's epsilon is a float32.
    n = (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + float(np.float32(1e-5))) * scale + bias
    q, k, v = n @ wq, n @ wk, n @ wv
    r = x + jax.nn.softmax(q @ k.transpose(0, 2, 1) * 0.5, axis=-1) @ v
    h = r @ w1
    return r + (h * (jax.scipy.special.erf(h / 1.4142135623730951) + 1) * 0.5) @ w2


@net("g (real[T,N,3] x, real[1,16,3] w, real[1,16,4] r, real[1,32] b) => (real[1,N,4] y) {"
     " all, y = LSTM<hidden_size=4>(x, w, r, b) }",
     ["x", "r"], ["x"],
     dict(x=(3, 2, 3), w=(1, 16, 3), r=(1, 16, 4), b=(1, 32)), dict(x=(4, 1, 3), w=(1, 16, 3), r=(1, 16, 4), b=(1, 32)))
def lstm(x, w, r, b):
    h = c = jnp.zeros((x.shape[1], 4))
    bias = b[0, :16] + b[0, 16:]
    for t in range(x.shape[0]):
        i, o, f, g = jnp.split(x[t] @ w[0].T + h @ r[0].T + bias, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h[None]


@net("g (real[A,3] x, real[4,5] w1, real[5,1] w2) => (real y)"
     " <int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, real one = {1.0}, real half = {0.5}, real pi = {0.6},"
     " real eta = {-1.5}, real[4] shift = {0.5, 1.0, 1.5, 2.0}> {"
     " a = Unsqueeze(x, i1) b = Unsqueeze(x, i0) d = Sub(a, b) dd = Mul(d, d) s = ReduceSum<keepdims=0>(dd, i2)"
     " eye = EyeLike(s) se = Add(s, eye) r = Sqrt(se) pr = Mul(r, pi) cr = Cos(pr) ch = Mul(cr, half) fc = Add(ch, half)"
     " off = Sub(one, eye) cut = Mul(fc, off) ru = Unsqueeze(r, i2) rs = Sub(ru, shift) rr = Mul(rs, rs) er = Mul(rr, eta)"
     " ex = Exp(er) cu = Unsqueeze(cut, i2) g = Mul(ex, cu) f = ReduceSum<keepdims=0>(g, i1)"
     " h = MatMul(f, w1) t = Celu(h) e = MatMul(t, w2) y = ReduceSum<keepdims=0>(e) }",
     ["x"], ["x"], dict(x=(4, 3), w1=(4, 5), w2=(5, 1)), dict(x=(5, 3), w1=(4, 5), w2=(5, 1)))
def ani(x, w1, w2):
    eye = jnp.eye(x.shape[0])
    r = jnp.sqrt(((x[:, None] - x[None]) ** 2).sum(2) + eye)
    cut = (jnp.cos(r * 0.6) * 0.5 + 0.5) * (1 - eye)
    g = jnp.exp(-1.5 * (r[:, :, None] - jnp.array([0.5, 1.0, 1.5, 2.0])) ** 2) * cut[:, :, None]
    return (jax.nn.celu(g.sum(1) @ w1) @ w2).sum()


@net("g (real[N,3] x, real[3,3] w, int64 n) => (real[N,3] y) <bool yes = {1}, real zero = {0.0}> {"
     " last = Loop(n, yes, x) <body = body (int64 i, bool go, real[N,3] before) => (bool on, real[N,3] after)"
     " { on = Identity(go) p = MatMul(before, w) s = Add(p, x) after = Tanh(s) }>"
     " sum = ReduceSum<keepdims=0>(x) positive = Greater(sum, zero)"
     " y = If(positive) <then_branch = yes () => (real[N,3] a) { a = Mul(last, last) },"
     " else_branch = no () => (real[N,3] b) { e = Exp(last) b = Mul(e, x) }> }",
     ["x", "w"], ["x"], dict(x=(2, 3), w=(3, 3)), dict(x=(1, 3), w=(3, 3)), integers=dict(n=3))
def control(x, w):
    h = x
    for _ in range(3):
        h = jnp.tanh(h @ w + x)
    return jnp.where(x.sum() > 0, h * h, jnp.exp(h) * x)


def tensor(values):
    values = np.asarray(values, np.float64)
    return {"dims": list(values.shape), "values": values.ravel().tolist()}


def case(name, rng, sizes):
    graph, function, xs, hessian, _, integers = NETS[name]
    inputs = {key: np.round(rng.uniform(-1, 1, shape), 3) for key, shape in sizes.items()}
    fixed = {k: v for k, v in inputs.items() if k not in xs}
    f = lambda *args: function(**dict(zip(xs, args)), **fixed)
    at = [inputs[x] for x in xs]
    u = [np.round(rng.uniform(-1, 1, a.shape), 3) for a in at]
    y, jvp = jax.jvp(f, tuple(at), tuple(u))
    v = np.round(rng.uniform(-1, 1, y.shape), 3)
    vjp = jax.vjp(f, *at)[1](jnp.asarray(v))
    total = lambda *args: f(*args).sum()
    everything = tuple(range(len(xs)))
    hvp = jax.jvp(jax.grad(total, everything), tuple(at), tuple(u))[1]
    jacobian = jax.jacrev(f, everything)(*at)
    places = tuple(xs.index(x) for x in hessian)
    matrices = jax.hessian(total, places)(*at)
    return {
        "name": name,
        "graph": graph,
        "inputs": {k: tensor(value) for k, value in inputs.items()},
        "integers": integers,
        "xs": xs,
        "u": dict(zip(xs, map(tensor, u))),
        "v": tensor(v),
        "y": tensor(y),
        "jvp": tensor(jvp),
        "vjp": dict(zip(xs, map(tensor, vjp))),
        "hvp": dict(zip(xs, map(tensor, hvp))),
        "jacobian": dict(zip(xs, map(tensor, jacobian))),
        "hessian": {f"{a}/{b}": tensor(matrices[i][j]) for i, a in enumerate(hessian) for j, b in enumerate(hessian)},
    }


def main():
    rng = np.random.default_rng(12)
    cases = [case(name, rng, sizes) for name, net in NETS.items() for sizes in net[4]]
    print("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]")


main()
