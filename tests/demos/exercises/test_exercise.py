"""The exercises: the original and the plain way solve each, no usual mistake does, and the program says why."""

import ast
import importlib.util
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import laws
import pytest

from tinydiff.backend import TinydiffError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="a check runs on numpy, whatever the suite does"),
]

ROOT = Path(__file__).parents[3]

# Wrong lines that readers write, five or more an exercise: the mistake's name, the original's words, the wrong ones.
WRONG = {
    "closed_form": {
        "sqrt forgotten": ("signal_std = schedule.alpha_bar[t] ** 0.5", "signal_std = schedule.alpha_bar[t]"),
        "alpha for alpha_bar": ("schedule.alpha_bar[t]", "schedule.alpha[t]"),
        "t off by one": ("one_minus_alpha_bar[t] ** 0.5", "one_minus_alpha_bar[t - 1] ** 0.5"),
        "noise taken away": ("* x_0 + per_row", "* x_0 - per_row"),
        "signal and noise changed places": ("per_row(signal_std, x_0) * x_0", "per_row(noise_std, x_0) * x_0"),
        "1 - alpha_bar in float32": (
            "per_row(noise_std, x_0)",
            'per_row((1 - schedule.alpha_bar[t].astype("float32")) ** 0.5, x_0)',
        ),
    },
    "posterior": {
        "beta for beta_tilde": ("self.one_minus_alpha_bar[s] / self.one_minus_alpha_bar[t] * ", ""),
        "t for s": ("x_0_coef = schedule.alpha_bar[s] ** 0.5", "x_0_coef = schedule.alpha_bar[t] ** 0.5"),
        "sqrt forgotten": ("schedule.alpha_t_given_s(t, s) ** 0.5", "schedule.alpha_t_given_s(t, s)"),
        "x_0 and x_t changed places": (
            "per_row(x_0_coef, x_t) * x_0 + per_row(x_t_coef, x_t) * x_t",
            "per_row(x_0_coef, x_t) * x_t + per_row(x_t_coef, x_t) * x_0",
        ),
        "sign flipped (eq. 7)": ("* x_0 + per_row(x_t_coef", "* x_0 - per_row(x_t_coef"),
    },
    "schedules": {
        "not scaled with T": ("_T_REF / T * (_BETA_FIRST", "1.0 * (_BETA_FIRST"),
        "t off by one": ("u = _ramp(T)", "u = np.arange(1, T + 1) / T"),
        "cosine not squared": ("* np.pi / 2) ** 2", "* np.pi / 2)"),
        "no cap": ("np.minimum(1 - f[1:] / f[:-1], 0.999)", "1 - f[1:] / f[:-1]"),
        "no offset": ("(np.arange(T + 1) / T + 0.008) / 1.008", "(np.arange(T + 1) / T)"),
        "alpha_bar for beta": ("np.minimum(1 - f[1:] / f[:-1], 0.999)", "np.minimum(1 - f[1:] / f[0], 0.999)"),
    },
    "training_loss": {
        "t = T never trained": ("integers(1, schedule.T + 1,", "integers(1, schedule.T,"),
        "t from 0": ("integers(1, schedule.T + 1,", "integers(0, schedule.T,"),
        "other noise in the target": (
            "target.of(schedule, x_0, t, eps)",
            'target.of(schedule, x_0, t, rng.standard_normal(x_0.shape, dtype="float32"))',
        ),
        "one noise for every step": ("eps = rng.standard_normal(", "eps = default_rng(0).standard_normal("),
        "one t for the whole batch": ("schedule.T + 1, n)", "schedule.T + 1, 1).repeat(n)"),
        "the same images at every step": ("config.seed, step)", "config.seed, 0)"),
        "sum for mean": ("ops.mean(error", "ops.total(error"),
        "fourth power for square": ("ops.mean(error * error,", "ops.mean(error * error * error * error,"),
        "mean over rows and columns only": ("axis=(1, 2, 3)", "axis=(1, 2)"),
        "weight forgotten": ('losses * asarray(batch["weight"]) if "weight" in batch else losses', "losses"),
    },
    "ddpm_step": {
        "variance for standard deviation": ("per_row(var**0.5, mean)", "per_row(var, mean)"),
        "noise in the last step": (" * (host_integers", " + 0 * (host_integers"),
        "clip forgotten": ("x_t, eps_hat, t, clip)", "x_t, eps_hat, t, False)"),
        "beta_tilde whatever is asked for": ("variance(schedule, t, s)", "schedule.beta_tilde(t, s)"),
        "eps_hat for x_0_hat": ("x_t, x_0_hat, t, s)", "x_t, eps_hat, t, s)"),
    },
    "ddim_step": {
        "eps at t for s": ("(schedule.one_minus_alpha_bar[s] - var)", "(schedule.one_minus_alpha_bar[t] - var)"),
        "signal at t for s": ("signal_std = schedule.alpha_bar[s]", "signal_std = schedule.alpha_bar[t]"),
        "sign of eps flipped": ("* x_0_hat + per_row", "* x_0_hat - per_row"),
        "eps not less for the noise": ("[s] - var).clip(0)", "[s]).clip(0)"),
        "eta for eta^2": ("var = eta**2 *", "var = eta *"),
        "eps_hat kept where x_0_hat was clipped": ("eps_hat = eps_from_x_0(schedule, x_t, t, x_0_hat)", "pass"),
        "root of -1e-17": (".clip(0)", ""),
    },
    "guidance": {
        "scale counted from 0, as 1 + w": ("eps_u + scale *", "eps_c + scale *"),
        "the other way": ("(eps_c - eps_u)", "(eps_u - eps_c)"),
        "halves changed places": ("eps_u, eps_c = eps[:n], eps[n:]", "eps_c, eps_u = eps[:n], eps[n:]"),
        "the label for both": ("[no_label] * n + row_labels", "row_labels.tolist() + row_labels"),
        "class 0 for no label": ("[no_label] * n", "[0] * n"),
    },
    "unbroadcast": {
        "axes in front forgotten": ("g = g.sum(tuple(range(g.ndim - len(shape))))", "g = g"),
        "stretched axes forgotten": ("return g.sum(stretched, keepdims=True) if stretched else g", "return g"),
        "mean for sum": ("return g.sum(stretched", "return g.mean(stretched"),
        "one of the uses only": ("g = g.sum(tuple(range(g.ndim - len(shape))))", "g = g[(0,) * (g.ndim - len(shape))]"),
        "axes lined up at the first": ("tuple(range(g.ndim - len(shape)))", "tuple(range(len(shape), g.ndim))"),
        "stretched axes dropped": ("g.sum(stretched, keepdims=True)", "g.sum(stretched)"),
    },
    "backward_walk": {
        "the last gradient for their sum": ("dx = sum_of(grads[id(x)], dx, new)", "pass"),
        "added into what another holds": ("dx = sum_of(grads[id(x)], dx, new)", "dx = grads[id(x)].__iadd__(dx)"),
        "each path walked, not each node": ("if x is not None and id(x) not in places:", "if x is not None:"),
        "outputs first": ("return sorted(places.values(), key", "return sorted(places.values(), reverse=True, key"),
        "a node before all that use it": (
            "return sorted(places.values(), key=lambda place: 0 if isinstance(place, Tensor) else place.number)",
            "return list(places.values())[::-1]",
        ),
        "recursion": (
            "    while unvisited:",
            """    def visit(place):
        for x in () if isinstance(place, Tensor) else place.inputs:
            if x is not None and id(x) not in places:
                places[id(x)] = x
                visit(x)

    visit(root)
    unvisited = []
    while unvisited:""",
        ),
        "gradients that nobody wants": (
            "        if x is not None:\n            new",
            "        if x is not None or (callable(dx) and dx() is None):\n            new",
        ),
        "the old gradient forgotten": ("g if place.grad is None else place.grad + g", "g"),
        "a leaf given g itself": ("elif isinstance(x, Tensor) and not new:", "elif False:"),
    },
    "conv2d": {
        "not padded": ("(padding, padding), (padding, padding)", "(0, 0), (0, 0)"),
        "padded on one side only": ("(padding, padding), (padding, padding)", "(0, 2 * padding), (0, 2 * padding)"),
        "stride forgotten": (
            "slice(k, k + stride * oh, stride), slice(l, l + stride * ow, stride)",
            "slice(k, k + oh), slice(l, l + ow)",
        ),
        "end of the slice without stride": ("k + stride * oh, stride", "k + oh, stride"),
        "kernel flipped": ("for rows, columns in taps]", "for rows, columns in list(taps)[::-1]]"),
        "columns before rows": (
            "yield slice(k, k + stride * oh, stride), slice(l, l + stride * ow, stride)",
            "yield slice(l, l + stride * ow, stride), slice(k, k + stride * oh, stride)",
        ),
        "bias forgotten": ("@ filters + b", "@ filters"),
        "channels before taps": (
            "return xp.concatenate([padded[:, rows, columns] for rows, columns in taps], -1)",
            "return xp.stack([padded[:, rows, columns] for rows, columns in taps], -1).reshape("
            "*output_shape(x.shape, w_shape, stride, padding)[:3], -1)",
        ),
    },
    "conv2d_backward": {
        "set where it should add": ("cols] += columns", "cols] = columns"),
        "frame not cut off": ("padding : padding + h, padding : padding + width]", ":h, :width]"),
        "kernel flipped": (
            "enumerate(_taps(x_shape, w_shape, stride, padding))",
            "enumerate([*_taps(x_shape, w_shape, stride, padding)][::-1])",
        ),
        "w not transposed": ("g @ filters.T", "g @ filters.reshape(g.shape[3], -1)"),
        "first image only": (
            "columns.reshape(-1, len(filters)).T @ g.reshape(-1, g.shape[3])",
            "columns[0].reshape(-1, len(filters)).T @ g[0].reshape(-1, g.shape[3])",
        ),
        "mean for sum": ("g.sum((0, 1, 2))", "g.mean((0, 1, 2))"),
        "each image's bias alone": ("g.sum((0, 1, 2))", "g[0].sum((0, 1))"),
    },
    "group_norm_backward": {
        "statistics taken for constants": ("rstd * (d - d.mean((1, 3), keepdims=True) - along)", "rstd * d"),
        "the mean forgotten": ("d - d.mean((1, 3), keepdims=True) - along", "d - along"),
        "the scale's share forgotten": (" - along)", ")"),
        "gamma forgotten": ("(gamma * g)", "g"),
        "means over pixels only": ("mean((1, 3),", "mean(1,"),
        "x for x_hat in dgamma": ("(g * x_hat.reshape(shape))", "(g * x)"),
        "rstd forgotten": ("dx = rstd * ", "dx = "),
    },
    "attention": {
        "not scaled": ("scale = 1 / math.sqrt(q.shape[-1])", "scale = 1"),
        "by D, not its root": ("scale = 1 / math.sqrt(q.shape[-1])", "scale = 1 / q.shape[-1]"),
        "softmax over the queries": (
            "p = softmax_array(scores if mask is None else xp.where(asarray(mask), scores, -xp.inf))",
            "p = softmax_array((scores if mask is None else xp.where(asarray(mask), scores, -1e9)).swapaxes(-1, -2))"
            ".swapaxes(-1, -2)",
        ),
        "scale forgotten in the gradient": ("g @ v.swapaxes(-1, -2)) * scale", "g @ v.swapaxes(-1, -2))"),
        "softmax taken for its exponential": (
            "softmax_gradient(p, g @ v.swapaxes(-1, -2))",
            "p * (g @ v.swapaxes(-1, -2))",
        ),
        "hidden keys at 0": ("scores, -xp.inf)", "scores, 0)"),
        "not transposed": ("p.swapaxes(-1, -2) @ g", "p @ g"),
    },
    "ema": {
        "no correction of the start": (" / (1 - beta1**k), v / (1 - beta2**k)", ", v"),
        "one correction for all": ("v / (1 - beta2**k)", "v / (1 - beta1**k)"),
        "not the square": ("(g * g)", "g"),
        "betas changed places": ("beta1, beta2 = betas", "beta2, beta1 = betas"),
        "eps under the root": ("(xp.sqrt(v_hat) + eps)", "xp.sqrt(v_hat + eps)"),
        "uphill": ("p.data - lr", "p.data + lr"),
        "the root forgotten": ("xp.sqrt(v_hat)", "v_hat"),
        "weights changed places": ("average + (1 - d) *", "average + d *"),
        "rounded away from itself": ("average + (1 - d) * (p.data - average)", "d * average + (1 - d) * p.data"),
        "no gradient, no step": ("g = 0 if p.grad is None else p.grad", "if (g := p.grad) is None:\n        return"),
        "a new array": ("p.data[...] =", "p.data ="),
        "no warm-up": ("d = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))", "d = self.decay"),
        "counted too early": ("(1 + self.num_updates) / (10 +", "(2 + self.num_updates) / (11 +"),
        "the later of the two": ("d = min(", "d = max("),
    },
    "time_code": {
        "cosines first": ("(math.sin, math.cos)", "(math.cos, math.sin)"),
        "in turns": (
            "for wave in (math.sin, math.cos) for i in range(half)",
            "for i in range(half) for wave in (math.sin, math.cos)",
        ),
        "frequencies rise": ("** (-i / half)", "** (i / half)"),
        "the other convention, h - 1": ("** (-i / half)", "** (-i / max(half - 1, 1))"),
        "angles in float32": (
            "wave(k * FREQUENCY_RANGE ** (-i / half))",
            'wave(k * float(asarray(FREQUENCY_RANGE ** (-i / half), "float32")))',
        ),
    },
}  # fmt: skip

# What a reader may write after the last hint, where it differs from the original: in the cuts' order.
PLAIN = {
    "posterior": [
        "return self.one_minus_alpha_bar[s] * self.beta_t_given_s(t, s) / self.one_minus_alpha_bar[t]",
        """
        beta, below = schedule.beta_t_given_s(t, s), schedule.one_minus_alpha_bar[t]
        of_x_0 = schedule.alpha_bar[s] ** 0.5 * beta / below
        of_x_t = schedule.alpha_t_given_s(t, s) ** 0.5 * schedule.one_minus_alpha_bar[s] / below
        return per_row(of_x_0, x_t) * x_0 + per_row(of_x_t, x_t) * x_t, per_row(schedule.beta_tilde(t, s), x_t)
        """,
    ],
    "training_loss": [
        """
        x_0, labels = dataset.batch(epoch_indices(len(dataset), n, config.seed, step))
        eps = rng.standard_normal(x_0.shape, dtype="float32")
        t = rng.integers(1, schedule.T + 1, n)
        batch = {"t": t}
        batch["x_t"] = q_sample(schedule, x_0, t, eps)
        batch["target"] = target.of(schedule, x_0, t, eps)
        """,
        """
        eps_hat = model(batch["x_t"], batch["t"], batch.get("labels"))
        error = eps_hat - asarray(batch["target"])
        losses = ops.mean(error * error, axis=(1, 2, 3))
        if "weight" in batch:
            losses = losses * asarray(batch["weight"])
        return losses
        """,
    ],
    "unbroadcast": [
        """
        while g.ndim > len(shape):
            g = g.sum(0)
        for axis, size in enumerate(shape):
            if size == 1:
                g = g.sum(axis, keepdims=True)
        return g
        """
    ],
    "backward_walk": [
        """
        places, seen, todo = [root], {id(root)}, [root]
        while todo:
            for x in getattr(todo.pop(), "inputs", ()):
                if x is not None and id(x) not in seen:
                    seen.add(id(x))
                    places.append(x)
                    todo.append(x)
        return sorted(places, key=lambda place: getattr(place, "number", 0))
        """,
        """
        grads = {id(places[-1]): g}
        for place in places[::-1]:
            g = grads[id(place)]
            if isinstance(place, Tensor):
                place.grad = xp.array(g if place.grad is None else place.grad + g)
            else:
                _hand_on(place, g, grads)
        """,
        """
        for x, dx in zip(node.inputs, node.vjp(g)):
            if x is not None:
                dx = dx() if callable(dx) else dx
                grads[id(x)] = grads[id(x)] + dx if id(x) in grads else dx
        """,
    ],
    "conv2d": [
        "y = im2col(x, w.shape, stride, padding) @ filters + b",
        """
        n, h, width, c = x.shape
        padded = xp.zeros((n, h + 2 * padding, width + 2 * padding, c), x.dtype)
        padded[:, padding : padding + h, padding : padding + width] = x
        n, oh, ow, _ = output_shape(x.shape, w_shape, stride, padding)
        windows = xp.zeros((n, oh, ow, w_shape[0] * w_shape[1], c), x.dtype)
        for tap, (rows, columns) in enumerate(_taps(x.shape, w_shape, stride, padding)):
            windows[:, :, :, tap] = padded[:, rows, columns]
        return windows.reshape(n, oh, ow, -1)
        """,
        """
        kh, kw = w_shape[:2]
        for tap in range(kh * kw):
            k, l = divmod(tap, kw)
            yield slice(k, k + stride * oh, stride), slice(l, l + stride * ow, stride)
        """,
    ],
    "conv2d_backward": [
        """
        windows = im2col(x, w.shape, stride, padding).reshape(-1, len(filters))
        rows = g.reshape(-1, g.shape[3])
        dx = col2im(g @ filters.T, x.shape, w.shape, stride, padding)
        return dx, (windows.T @ rows).reshape(w.shape), rows.sum(0)
        """,
        """
        padded = xp.zeros((n, h + 2 * padding, width + 2 * padding, c), columns.dtype)
        _, oh, ow, _ = output_shape(x_shape, w_shape, stride, padding)
        columns = columns.reshape(n, oh, ow, *w_shape[:3])
        for i in range(oh):
            for j in range(ow):
                window = padded[:, i * stride : i * stride + w_shape[0], j * stride : j * stride + w_shape[1]]
                window += columns[:, i, j]
        return padded[:, padding : padding + h, padding : padding + width]
        """,
    ],
    "group_norm_backward": [
        """
        g_groups, gamma_groups = g.reshape(x_hat.shape), gamma.reshape(1, 1, num_groups, -1)
        dgamma, dbeta = (g_groups * x_hat).sum((0, 1)).reshape(-1), g_groups.sum((0, 1)).reshape(-1)
        d = gamma_groups * g_groups
        level, along = d.mean((1, 3), keepdims=True), (d * x_hat).mean((1, 3), keepdims=True)
        return (rstd * (d - level - x_hat * along)).reshape(shape), dgamma, dbeta
        """
    ],
    "attention": [
        """
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = xp.where(asarray(mask), scores, -xp.inf)
        p = softmax_array(scores)

        def vjp(g):
            dp, dv = g @ v.swapaxes(-1, -2), p.swapaxes(-1, -2) @ g
            ds = softmax_gradient(p, dp) / math.sqrt(q.shape[-1])
            return ds @ k, ds.swapaxes(-1, -2) @ q, dv

        return p @ v, vjp
        """
    ],
    "ema": [
        """
        beta1, beta2 = betas
        g = xp.zeros_like(p.data) if p.grad is None else p.grad
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g**2
        p.data[...] -= lr * (m / (1 - beta1**k)) / ((v / (1 - beta2**k)) ** 0.5 + eps)
        """,
        """
        n = self.num_updates
        d = min(self.decay, (1 + n) / (10 + n))
        """,
        "average += (1 - d) * (p.data - average)",
    ],
    "time_code": [
        """
        f = [FREQUENCY_RANGE ** (-i / half) for i in range(half)]
        return [math.sin(k * w) for w in f] + [math.cos(k * w) for w in f]
        """
    ],
}
MISTAKES = [(name, mistake) for name, mistakes in WRONG.items() for mistake in mistakes]
# Each takes seconds: one of every exercise is tried each time, the others with  pytest -m slow.
CASES = [
    pytest.param(name, mistake, id=f"{name}-{mistake}", marks=[pytest.mark.slow] if place > 0 else [])
    for name, mistakes in WRONG.items()
    for place, mistake in enumerate(mistakes)
]


def few(names):
    """Two exercises each time, the others with  pytest -m slow: the suite itself runs the laws on the originals."""
    return [
        pytest.param(name, marks=[] if name in ("closed_form", "time_code") else pytest.mark.slow) for name in names
    ]


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("exercises/exercise")


@pytest.fixture(scope="module")
def exercises(demo):
    return {exercise.name: exercise for exercise in demo.EXERCISES}


@pytest.fixture(scope="module")
def judge():
    """judge(folder, laws, only_first): laws.run in a process that has loaded pytest, but never another tinydiff."""
    way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(way)
    context.set_forkserver_preload(["numpy", "pytest", "hypothesis"])
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("COVERAGE_")]:  # the copies do not stay
            patch.delenv(name)
        with context.Pool(1, maxtasksperchild=1) as pool:
            # A process that has died never answers.
            yield lambda *arguments: pool.apply_async(laws.run, arguments).get(timeout=300)


@pytest.fixture(scope="module")
def copy(demo, exercises, tmp_path_factory):
    """copy(name, text): the folder of one working copy, with text(source, cuts) in place of the exercise's files."""
    folder = tmp_path_factory.mktemp("exercise")
    demo.make_copy(exercises["closed_form"], folder)
    changed = {cut.file for cut in exercises["closed_form"].cuts}

    def write(name, text):
        cuts = exercises[name].cuts
        for file in changed | {cut.file for cut in cuts}:
            path, source = folder / "tinydiff" / file, (ROOT / "tinydiff" / file).read_text(encoding="utf-8")
            path.write_text(text(source, [cut for cut in cuts if cut.file == file]), encoding="utf-8")
            Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)  # its stamp has whole seconds
        changed.update(cut.file for cut in cuts)
        return folder

    return write


def wrong(demo, mistake):
    """A change of source within the lines that an exercise is about, for `copy`; `made` says how often it was made."""
    old, new = mistake
    made = []

    def text(source, cuts):
        lines = source.splitlines(keepends=True)
        for first, last in sorted(demo.region(source, cut) for cut in cuts)[::-1]:
            part = "".join(lines[first - 1 : last])
            made.extend([old] * part.count(old))
            lines[first - 1 : last] = [part.replace(old, new)]
        return "".join(lines)

    return text, made


def test_every_exercise_has_its_mistakes(exercises):
    """Five or more each."""
    assert list(WRONG) == list(exercises)
    assert len(WRONG) == 15 and min(map(len, WRONG.values())) >= 5 and len(MISTAKES) >= 85


@pytest.mark.parametrize("name", few(WRONG))
def test_the_original_solves_it(name, exercises, copy, judge):
    """Every law holds for the package as it is, and every law that the exercise names is among them."""
    results = judge(str(copy(name, lambda source, cuts: source)), exercises[name].laws)
    assert [law for law in results if not law["passed"]] == []
    assert {law["law"] for law in results} == set(exercises[name].laws)


def write_plain(demo, folder, exercise):
    """Write the plain way into a working copy, cut by cut."""
    for cut, body in zip(exercise.cuts, PLAIN[exercise.name], strict=True):
        path = folder / "tinydiff" / cut.file
        source = path.read_text(encoding="utf-8")
        (line,) = (line for line in source.splitlines() if f'"your turn: {cut.turn}"' in line)
        indent = line[: -len(line.lstrip())]
        path.write_text(source.replace(line, textwrap.indent(textwrap.dedent(body).strip(), indent)), encoding="utf-8")


@pytest.mark.parametrize("name", few(PLAIN))
def test_the_plain_way_of_the_hints_solves_it(name, demo, exercises, copy, judge):
    """The laws ask for the right numbers and not for the original's words."""
    folder = copy(name, demo.without)
    write_plain(demo, folder, exercises[name])
    assert [law for law in judge(str(folder), exercises[name].laws) if not law["passed"]] == []


@pytest.mark.parametrize("name", few(WRONG))
def test_every_law_waits_for_the_reader(name, demo, exercises, copy, judge):
    """On an untouched copy each law fails, because it is the reader's turn."""
    results = judge(str(copy(name, demo.without)), exercises[name].laws)
    assert [law for law in results if law["passed"] or "your turn: " not in law["error"]] == []


@pytest.mark.parametrize("name, mistake", CASES)
def test_a_usual_mistake_does_not_solve_it(name, mistake, demo, exercises, copy, judge):
    """At least one law fails, not because the program cannot run, and the reason is given in words."""
    text, made = wrong(demo, WRONG[name][mistake])
    folder = copy(name, text)
    assert made, "the original has no such words"
    results = judge(str(folder), exercises[name].laws, True)
    assert [law["passed"] for law in results] == [True] * (len(results) - 1) + [False]
    assert results[-1]["error"] and results[-1]["text"]


# ----------------------------------------------------------------------------------------------------- the plain forms


def test_a_faster_form_does_not_stand_in_for_the_readers(demo, exercises, copy, judge):
    """A wrong im2col fails although the copy's fast conv2d is right, and with the fast one installed it would pass."""
    exercise = exercises["conv2d"]
    text, _ = wrong(demo, WRONG["conv2d"]["kernel flipped"])
    folder = copy("conv2d", text)
    for file in ("fast/conv.py", "fast/install.py"):
        assert (folder / "tinydiff" / file).read_bytes() == (ROOT / "tinydiff" / file).read_bytes()
    (result,) = judge(str(folder), exercise.laws[:1])
    assert not result["passed"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / exercise.laws[0]]
    environment = os.environ | {"PYTHONPATH": str(folder), "HYPOTHESIS_PROFILE": "mutation"}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0


def test_the_laws_run_with_nothing_installed(copy, judge):
    """The table FAST is empty while a law runs: a copy that installs all the same is refused, by the forms' names."""
    folder = copy("posterior", lambda source, cuts: source)
    path = folder / "tinydiff" / "backend.py"
    source = path.read_text(encoding="utf-8")
    right, wrong = "for prepare in [] if plain else _prepare:", "for prepare in _prepare:"
    assert source.count(right) == 1
    law = ("diffusion/test_schedule.py::test_beta_tilde_is_beta_seen_from_the_data",)
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    try:
        with pytest.raises(RuntimeError, match=r"faster forms would be tested in place of the copy's .*conv2d"):
            judge(str(folder), law)
    finally:
        path.write_text(source, encoding="utf-8")
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)


@pytest.mark.parametrize("law", ["test_optim.py::test_no_such_law", "test_package.py::test_nothing_is_borrowed"])
def test_a_law_that_has_not_run_does_not_hold(law, copy, judge):
    """A law that does not exist, and one that --plain leaves out, are refused by name."""
    folder = copy("ema", lambda source, cuts: source)
    with pytest.raises(RuntimeError, match=f"has not run {law}"):
        judge(str(folder), ("test_optim.py::test_updates_are_written_in_place", law))


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.fixture
def do(demo, tmp_path, capsys):
    """do("start", "ema") runs main in a new folder and returns its exit code and its output on one line."""

    def do(*arguments, **options):
        try:
            code = demo.main(*arguments, dir=tmp_path, **options)
        except SystemExit as end:
            code = end.code
        return code or 0, " ".join(capsys.readouterr().out.split())

    return do


def solve(demo, folder, exercise):
    """Put what was taken out back into a working copy."""
    for cut in exercise.cuts:
        (folder / exercise.name / "tinydiff" / cut.file).write_text(
            (ROOT / "tinydiff" / cut.file).read_text(encoding="utf-8"), encoding="utf-8"
        )


@pytest.fixture
def judged(demo, monkeypatch):
    """judged(law, ...): the next checks get these laws from the judge.  law(...) makes one."""
    monkeypatch.setattr(demo, "source_digest", lambda: "digest")

    def give(*laws):
        monkeypatch.setattr(demo, "judge", lambda exercise, copy: list(laws))

    return give


def law(name, error="", places=(), example=""):
    """A law that holds, or one that failed with an error at some places (file, line, code, function)."""
    keys = ("file", "line", "code", "function")
    places = [dict(zip(keys, place)) for place in places]
    failed = {"error": error, "places": places, "example": example} if error else {}
    return {"name": name, "text": f"text of {name}", "passed": not error} | failed


def test_an_exercise_from_start_to_end(demo, exercises, do, tmp_path):
    """Untouched it fails as the reader's turn, by the laws themselves; start shows the places."""
    _, output = do("start")
    place = tmp_path / "closed_form" / "tinydiff" / "diffusion" / "gaussian.py"
    number = 1 + place.read_text(encoding="utf-8").splitlines().index(
        '    raise NotImplementedError("your turn: x_t from x_0, t and eps (Ho et al. 2020, eq. 4)")'
    )
    first = exercises["closed_form"]
    assert f"Exercise 1 of {len(exercises)}: The closed form (about 10 minutes)" in output
    assert f"It teaches {' '.join(first.teaches.split())}. {' '.join(first.task.split())} Write in" in output
    assert f"{place}:{number} When it is written:" in output and output.count("exercise.py") == 2
    assert f"exercise.py check --dir {tmp_path}" in output and f"exercise.py hint --dir {tmp_path}" in output
    do("start", "time_code")
    path = tmp_path / "time_code" / "tinydiff" / "nn" / "unet.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if "your turn: " in line)
    code, output = do("check")
    assert code == 1 and "0 of 3 hold" in output and output.count("FAILED") == 3 and output.count("-> as above") == 2
    assert f"-> still to be written, {path}:{number}: sines and cosines of k times the frequencies f_i" in output
    assert "FAILED the time code holds sines then cosines" in output


def test_a_check_counts_the_laws_that_hold_and_ends_with_1_unless_all_do(demo, exercises, do, judged, tmp_path):
    """2 of 3, then all: the question, what to read, and the next exercise that is not solved."""
    do("start", "ema")
    path = str(tmp_path / "ema" / "tinydiff" / "optim.py")
    at = (path, 31, "m[...] = m", "adam_update")
    judged(law("one holds"), law("two fails", "AssertionError: 1 is not 2", [at], "lr = 3"), law("three holds"))
    code, output = do("check")
    assert (
        code == 1 and f"ema: {len(exercises['ema'].laws)} laws of tests/ on {tmp_path / 'ema' / 'tinydiff'}" in output
    )
    assert "ok one holds FAILED two fails text of two fails -> AssertionError: 1 is not 2" in output
    assert f"{path}:31: m[...] = m with lr = 3 ok three holds 2 of 3 hold. Stuck?" in output
    assert f"exercise.py hint --dir {tmp_path}" in output and "text of one holds" not in output
    notes = demo.progress(demo.find("ema"), tmp_path)
    assert notes == {"hints": 0, "solved": False, "source": "digest"}
    judged(law("one"), law("two"))
    do("start", "time_code")  # begun, but not solved
    code, output = do("check", "ema")
    assert code == 0 and "ok one ok two Solved: all laws hold." in output and "FAILED" not in output
    for part in (exercises["ema"].question, exercises["ema"].read_next):
        assert " ".join(part.split()) in output
    assert f"Next exercise: python demos/exercises/exercise.py start time_code --dir {tmp_path}" in output
    assert demo.progress(demo.find("ema"), tmp_path)["solved"] is True
    do("check", "time_code")
    assert "start closed_form" in do("check", "time_code")[1]  # after the last the first
    judged(law("one fails", "AssertionError"))
    assert do("check", "ema")[0] == 1 and demo.progress(demo.find("ema"), tmp_path)["solved"] is False
    judged(law("one"), law("two"))
    for exercise in demo.EXERCISES:
        (tmp_path / exercise.name).mkdir(exist_ok=True)
        demo.keep(exercise, tmp_path, hints=0, solved=True)
    assert "That was the last one." in do("check", "ema")[1]


def test_the_same_reason_is_given_once(do, judged, tmp_path):
    """As above: the same error at the same last place.  Another place or another error is told anew."""
    do("start", "ema")
    here, there = (str(tmp_path / "ema" / "tinydiff" / "optim.py"), 3, "x", "f"), ("/elsewhere.py", 4, "y", "g")
    judged(
        law("a", "wrong", [here]),
        law("b", "wrong", [there, here]),
        law("c", "wrong", [here, there]),
        law("d", "worse", [there]),
        law("e", "worse"),
    )
    output = do("check")[1]
    marks = [output.index(f"text of {name}") for name in "abcde"]
    told = [output[start:end] for start, end in zip(marks, [*marks[1:], None])]
    assert ["as above" in text for text in told] == [False, True, False, False, False]
    assert "/elsewhere.py:4: y" in told[2] and "optim.py" not in told[2] and "0 of 5 hold" in told[4]


def test_a_reason_names_the_last_line_that_the_reader_writes(demo, exercises):
    """Else the last of all; what is still to be written is named as that; a long error is cut to 300 characters."""
    inside = [
        ("/copy/tinydiff/optim.py", n, f"line {n}", f) for n, f in ((1, "adam_update"), (2, "update"), (3, "step"))
    ]
    after = [("/tests/test_optim.py", 9, "assert", "test_x")]
    for places, where in ((inside + after, ":2: line 2"), (inside[2:] + after, "test_optim.py:9: assert"), ([], "")):
        words = demo.in_words(law("x", "wrong", places), exercises["ema"])
        assert words.splitlines()[0] == "wrong" and words.endswith(where) and words.count("\n") == bool(places)
    turn = law("x", "NotImplementedError: your turn: m, v", inside[:1])
    assert demo.in_words(turn, exercises["ema"]) == "still to be written, /copy/tinydiff/optim.py:1: m, v"
    assert demo.in_words(law("x", "w", example="t = 3"), exercises["ema"]) == "w\nwith t = 3"
    long = " ".join(["word"] * 200)
    assert 295 <= len(demo.in_words(law("x", long), exercises["ema"])) <= 300
    assert demo.in_words(law("x", long[:299]), exercises["ema"]) == long[:299]
    other_file = [("/copy/tinydiff/train.py", 7, "other", "update")]
    assert ":1: line 1" in demo.in_words(law("x", "wrong", inside[:1] + other_file), exercises["ema"])


def test_the_list_shows_each_exercise_in_order_with_its_state(demo, exercises, do, judged, tmp_path):
    """Its number, minutes and title; nothing, started or solved; how many are solved."""
    do("start", "ema")
    do("start", "conv2d")
    judged(law("holds"))
    do("check")
    output = do("list")[1]
    places = []
    for number, exercise in enumerate(exercises.values(), 1):
        state = {"ema": "started ", "conv2d": "solved "}.get(exercise.name, "")
        line = f"{number} {exercise.name} {exercise.minutes} min {state}{exercise.title} "
        places.append(output.index(line + " ".join(exercise.teaches.split())))
    assert places == sorted(places)
    assert output.endswith(f"1 of 15 solved. python demos/exercises/exercise.py start NAME --dir {tmp_path}")


def test_start_takes_the_first_that_is_not_begun_and_the_others_the_one_worked_on_last(demo, do, judged, tmp_path):
    """By the time of its notes; a number is a name."""
    judged(law("holds"))
    do("start")
    assert "Exercise 2 of 15" in do("start")[1] and "Exercise 15 of 15" in do("start", "15")[1]
    stamps = {"closed_form": 3, "posterior": 9, "time_code": 5}
    for name, seconds in stamps.items():
        os.utime(tmp_path / name / "progress.json", (seconds, seconds))
    assert demo.latest(tmp_path).name == "posterior"
    assert "posterior: " in do("check")[1]
    for name in ("0", "16"):
        with pytest.raises(TinydiffError, match=f"no exercise is called {name}"):
            do("start", name)


def test_the_judge_is_asked_for_the_laws_of_the_exercise(demo, exercises, monkeypatch, tmp_path):
    """In a process of its own, with a limit; its answer is the JSON that it prints; its last line of errors is told."""
    asked = []

    def answer(returncode, stdout, stderr):
        def run(arguments, **options):
            asked.append((arguments, options))
            return SimpleNamespace(returncode=returncode, stdout=stdout, stderr=stderr)

        monkeypatch.setattr(demo.subprocess, "run", run)

    answer(0, '[{"passed": true}]', "noise")
    assert demo.judge(exercises["ema"], tmp_path) == [{"passed": True}]
    ((arguments, options),) = asked
    assert arguments == [sys.executable, str(ROOT / "tests" / "laws.py"), str(tmp_path), *exercises["ema"].laws]
    assert options == {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60}
    for stderr, reason in (("first\nRuntimeError: last\n", "RuntimeError: last"), ("", "no reason is given")):
        answer(1, "", stderr)
        with pytest.raises(TinydiffError, match=f"the laws could not be run: {reason}$"):
            demo.judge(exercises["ema"], tmp_path)


def test_a_region_is_whole_statements_of_its_function(demo):
    """From the first to the last that begin so; without words the first and the last statement; never the docstring."""
    lines = ["def g():", "    a = 1", "", "class C:", "    def f(self):", '        """Text."""', "        a = 1"]
    lines += ["        b = (", "            2", "        )", "        a = 3", "        return b", ""]
    source = "\n".join(lines)
    exercise = importlib.import_module(demo.EXERCISES[0].__class__.__module__)
    cases = {("", ""): (7, 12), ("b", ""): (8, 12), ("b", "b"): (8, 10), ("a", "a"): (7, 7), ("b", "a"): (8, 11)}
    for (first, last), place in cases.items():
        assert demo.region(source, exercise.Cut("x.py", "C.f", "t", first, last)) == place
    for first, last in (("z", ""), ("a = 3", "b")):
        with pytest.raises(ValueError, match=f"x.py: C.f has no statements from '{first}' to '{last}'"):
            demo.region(source, exercise.Cut("x.py", "C.f", "t", first, last))
    assert demo.region(source, exercise.Cut("x.py", "g", "t")) == (2, 2)
    left = demo.without(source, [exercise.Cut("x.py", "C.f", "two", "b", "b"), exercise.Cut("x.py", "g", "one")])
    assert left.count("NotImplementedError") == 2
    assert '    raise NotImplementedError("your turn: one")\n\nclass' in left
    assert '        a = 1\n        raise NotImplementedError("your turn: two")\n        a = 3\n' in left


def test_text_is_wrapped_to_the_terminal(demo, monkeypatch, capsys):
    """At most 120 columns; the first line stands after its mark, the others below it; a path stays in one piece."""
    monkeypatch.setattr(demo.shutil, "get_terminal_size", lambda fallback=None: os.terminal_size((20, 9)))
    demo.show("one two three four\nfive /a/long/path/that-is/whole", "->  ")
    lines = ["->  one two three", "    four", "    five", "    /a/long/path/that-is/whole"]
    assert capsys.readouterr().out.splitlines() == lines
    monkeypatch.setattr(demo.shutil, "get_terminal_size", lambda fallback=None: os.terminal_size((500, 9)))
    demo.show("word " * 50)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 119


def test_a_path_is_told_from_here_unless_it_lies_outside(demo, tmp_path, monkeypatch):
    """And the folder of the copies is told only if it is not the default."""
    monkeypatch.chdir(tmp_path)
    assert demo.near(str(tmp_path / "a" / "b.py")) == str(Path("a", "b.py"))
    assert demo.near(str(tmp_path.parent / "c.py")) == str(tmp_path.parent / "c.py")
    assert demo.command("check", Path("runs/exercise")) == "python demos/exercises/exercise.py check"
    assert demo.command("check", Path("x")) == "python demos/exercises/exercise.py check --dir x"


def test_no_python_and_no_end_are_told(demo, do, tmp_path, monkeypatch):
    """A syntax error is a law that fails, with its line; a loop without an end is stopped."""
    do("start", "time_code")
    path = tmp_path / "time_code" / "tinydiff" / "nn" / "unet.py"
    source = path.read_text(encoding="utf-8")
    (line,) = (line for line in source.splitlines() if "your turn" in line)
    path.write_text(source.replace(line, "    f = = 1"), encoding="utf-8")
    code, output = do("check")
    assert code == 1 and "FAILED nn/unet.py is Python" in output and "SyntaxError: invalid syntax" in output
    assert f"{path}:{source.splitlines().index(line) + 1}: f = = 1" in output
    path.write_text(source.replace(line, "    while True:\n        pass"), encoding="utf-8")
    monkeypatch.setattr(demo, "LIMIT", 1)
    with pytest.raises(TinydiffError, match="stopped after 1 s: is there a loop in your code that never ends"):
        do("check")


def test_hints_come_one_at_a_time(demo, exercises, do):
    """One, two, three, and then no more; each exercise counts its hints separately."""
    do("start", "ema")
    hints = [" ".join(hint.split()) for hint in exercises["ema"].hints]
    for given in (1, 2, 3, 3):
        output = do("hint")[1]
        assert [hint in output for hint in hints] == [k < given for k in range(3)]
        assert ("no more hints" in output) == (given == 3)
    do("start", "time_code")
    assert "2. " not in do("hint")[1]
    assert hints[2] in do("hint", "ema")[1]  # from here on ema was worked on last
    assert hints[2] in do("hint")[1]


def test_the_solution_is_the_original(do):
    """Every line that was taken out, with its place in the package."""
    do("start", "10")
    output = do("solution")[1]
    assert all(f", {function} " in output for function in ("conv2d", "im2col", "_taps"))
    for line in ("tinydiff/ops/conv.py:", "y = im2col(x, w.shape, stride, padding) @ filters + b", "padded = xp.pad("):
        assert line in output
    assert "your turn" not in output


def test_a_solution_has_its_place_and_whole_lines(demo, exercises, tmp_path, capsys):
    """Of each cut the file, its first line in the package, the function, and the lines from the first to the last."""
    demo.main("start", "ema", dir=tmp_path)
    capsys.readouterr()
    demo.main("solution", "ema", dir=tmp_path)
    expected = []
    for cut in exercises["ema"].cuts:
        source = (ROOT / "tinydiff" / cut.file).read_text(encoding="utf-8")
        first, last = demo.region(source, cut)
        lines = source.splitlines()
        expected += [f"tinydiff/{cut.file}:{first}, {cut.function}", "", *lines[first - 1 : last], ""]
        assert lines[first - 1].strip() and not lines[last - 1].strip().endswith(":")
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("action", ["start", "check"])
def test_without_the_tests_an_exercise_says_so_at_once(demo, do, tmp_path, monkeypatch, action):
    """Before anything is written, and not after an hour of work: what is missing, and how to install it."""
    if action == "check":
        do("start", "ema")
    before = list(tmp_path.rglob("*"))
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "hypothesis" else name)
    with pytest.raises(TinydiffError, match=r'the laws need hypothesis: pip install -e "\.\[test\]"'):
        do(action, "ema")
    assert list(tmp_path.rglob("*")) == before


def test_work_is_not_overwritten_unless_asked(demo, do, tmp_path):
    """A second start is refused and names the way to start again, which takes the hints back as well."""
    do("start", "ema")
    do("hint")
    path = tmp_path / "ema" / "tinydiff" / "optim.py"
    path.write_text("my work", encoding="utf-8")
    with pytest.raises(TinydiffError, match=r"contains your work on ema. .* check ema .* start ema --fresh --dir "):
        do("start", "ema")
    assert path.read_text(encoding="utf-8") == "my work"
    do("start", "ema", fresh=True)
    assert "your turn" in path.read_text(encoding="utf-8") and demo.progress(demo.find("ema"), tmp_path)["hints"] == 0


@pytest.mark.parametrize(
    "name, words", [("postrior", "did you mean posterior?"), ("16", "there are closed_form,"), ("x", "there are")]
)
def test_a_name_that_is_none_is_refused_with_those_near_it(do, name, words):
    """The nearest names, or all."""
    with pytest.raises(TinydiffError, match=f"no exercise is called {name}: {re.escape(words)}"):
        do("start", name)


@pytest.mark.parametrize("action", ["list", "check", "hint", "solution"])
def test_only_a_start_is_fresh(do, action):
    """--fresh is refused where it would do nothing."""
    with pytest.raises(TinydiffError, match=f"--fresh goes with start, not with {action}"):
        do(action, fresh=True)


def test_a_list_is_of_all(do):
    """A name would do nothing there."""
    with pytest.raises(TinydiffError, match="list shows every exercise; for ema alone choose start"):
        do("list", "ema")


def test_a_copy_of_another_version_of_the_package_is_known(demo, do, tmp_path, monkeypatch):
    """The laws go with the package: a check of a copy that was made before the package changed says so."""
    monkeypatch.setattr(demo, "judge", lambda *_: [])
    monkeypatch.setattr(demo, "source_digest", lambda: "first")
    do("start", "ema")
    assert "note" not in do("check")[1]
    monkeypatch.setattr(demo, "source_digest", lambda: "second")
    assert "note: the package has changed since this copy was made, and the laws with it" in do("check")[1]
    demo.keep(demo.find("ema"), tmp_path, source="second")
    assert "note" not in do("check")[1]


def test_a_folder_in_which_nothing_can_be_written_is_named(demo, tmp_path):
    """Before anything is copied."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TinydiffError, match=r"--dir .*ema: the folder cannot be made"):
        demo.main("start", "ema", dir=tmp_path / "file")


@pytest.mark.parametrize("action", ["check", "hint", "solution"])
def test_before_a_start_there_is_nothing_to_work_on(do, action):
    """With a name or without, the error says how to start."""
    with pytest.raises(TinydiffError, match=r"no exercise is under way in .*exercise\.py start"):
        do(action)
    with pytest.raises(TinydiffError, match=r"ema has not been started: .* start ema"):
        do(action, "ema")


def test_when_all_are_begun_start_wants_a_name(demo, do, tmp_path):
    """There is no next one to take."""
    for exercise in demo.EXERCISES:
        (tmp_path / exercise.name).mkdir()
        demo.keep(exercise, tmp_path, hints=0, solved=True)
    with pytest.raises(TinydiffError, match="every exercise has been started"):
        do("start")


def test_as_a_script_it_ends_with_an_exit_code(tmp_path, monkeypatch, capsys):
    """2 for what a user got wrong, 0 else; --help shows the five commands; without a command it lists."""
    script = ROOT / "demos" / "exercises" / "exercise.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [str(script), *arguments])
        code = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        written = capsys.readouterr()
        return code, written.out + written.err

    assert run("start", "nonsense")[0] == run("check")[0] == 2
    assert run() == run("list") and "0 of 15 solved" in run()[1]
    assert run("start", "ema")[0] == 0 and (tmp_path / "runs" / "exercise" / "ema" / "tinydiff").is_dir()
    code, output = run("--help")
    assert code == 0 and all(
        f"exercise.py {word} " in output for word in ("list", "start", "check", "hint", "solution")
    )


def test_another_package_is_never_tested_in_the_copys_place(tmp_path):
    """If the folder has no tinydiff and another one can be imported, the laws are not run, and the error names it."""
    command = [sys.executable, ROOT / "tests" / "laws.py", tmp_path, "test_optim.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"{ROOT / 'tinydiff' / '__init__.py'} would be tested in place of the copy in {tmp_path}" in done.stderr


# ----------------------------------------------------------------------------------------------------------- the table


def test_a_copy_is_the_package_but_for_what_was_taken_out(demo, exercises, tmp_path):
    """Signatures, docstrings and all lines around a cut stay: with the cut lines put back it is the package's file."""
    for exercise in exercises.values():
        for file in {cut.file for cut in exercise.cuts}:
            cuts = [cut for cut in exercise.cuts if cut.file == file]
            source = (ROOT / "tinydiff" / file).read_text(encoding="utf-8")
            lines, left = source.splitlines(), demo.without(source, cuts).splitlines()
            for first, last in sorted(demo.region(source, cut) for cut in cuts):
                assert left[first - 1].strip().startswith('raise NotImplementedError("your turn: ')
                left[first - 1 : first] = lines[first - 1 : last]
            assert left == lines


def test_what_the_table_names_exists(exercises):
    """Files to read next exist, an exercise takes 5 to 30 minutes, and no exercise names a law twice."""
    for exercise in exercises.values():
        assert 5 <= exercise.minutes <= 30 and len(exercise.hints) == 3
        (place,) = re.findall(r"(?:tinydiff|demos)/[\w/]+\.py", exercise.read_next)
        assert (ROOT / place).is_file()
        assert len(set(exercise.laws)) == len(exercise.laws)
        assert exercise.question.endswith("?")


def test_every_law_that_the_table_names_exists(exercises):
    """Each is the name of a test below tests/, and what a check prints for it is not empty."""
    trees = {}
    for law in {law for exercise in exercises.values() for law in exercise.laws}:
        file, name = law.partition("[")[0].split("::")
        if file not in trees:
            trees[file] = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        tree = trees[file]
        (test,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
        assert ast.get_docstring(test), law
