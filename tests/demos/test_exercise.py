"""The exercises: each is solved by the original and by no usual mistake, and the program says what it should."""

import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import laws
import pytest

from tinydiff.backend import TinydiffError, backend_name

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(backend_name() != "numpy", reason="a check runs on numpy, whatever the suite does"),
]

ROOT = Path(__file__).parents[2]

# Wrong lines that readers write, three or more an exercise: what each is, the original's words, the mistake's.
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
            "target.of(schedule, x_0, t[block], eps)",
            'target.of(schedule, x_0, t[block], rng.standard_normal(x_0.shape, dtype="float32"))',
        ),
        "sum for mean": ("ops.mean(error", "ops.sum(error"),
        "absolute error": ("ops.mean(error * error,", "ops.mean(ops.sqrt(error * error),"),
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
        "the last gradient for their sum": ("grads[id(x)] += dx", "grads[id(x)] = dx"),
        "added into what another holds": ("if id(x) in ours:", "if id(x) in grads:"),
        "each path walked, not each node": ("if x is not None and id(x) not in seen:", "if x is not None:"),
        "outputs first": ("return order", "return order[::-1]"),
        "a node before all that use it": (
            """                stack.append((x, _inputs(x)))
                break
        else:
            stack.pop()
            order.append(place)
    return order""",
            """                stack.append((x, _inputs(x)))
        stack.remove((place, inputs))
        order.append(place)
    return order[::-1]""",
        ),
        "recursion": (
            "    while stack:  # depth first, without recursion: 5,000 ops deep must work",
            """    def visit(place):
        for x in _inputs(place):
            if x is not None and id(x) not in seen:
                seen.add(id(x))
                visit(x)
        order.append(place)

    visit(root)
    stack = []
    while stack:""",
        ),
        "gradients that nobody wants": ("if x is None:", "if x is None and (not callable(dx) or dx() is not None):"),
    },
    "conv2d": {
        "padded on one side only": (
            "padded[:, padding : padding + h, padding : padding + wd] = x",
            "padded[:, :h, :wd] = x",
        ),
        "stride forgotten": ("image, stride * row, stride * column, row", "image, row, column, row"),
        "kernel flipped": ("(n, oh, ow, kh, kw, c), strides)", "(n, oh, ow, kh, kw, c), strides)[:, :, :, ::-1, ::-1]"),
        "bias forgotten": ("if b is not None:", "if False:"),
        "w in another order": ("w.reshape(-1, w.shape[3])", "w.transpose(2, 0, 1, 3).reshape(-1, w.shape[3])"),
    },
    "conv2d_backward": {
        "set where it should add": ("] += columns[:, :, :, k, l]", "] = columns[:, :, :, k, l]"),
        "stride forgotten": ("k : k + stride * oh : stride, l : l + stride * ow : stride", "k : k + oh, l : l + ow"),
        "frame not cut off": ("padding : padding + h, padding : padding + wd]", ":h, :wd]"),
        "kernel flipped": ("columns[:, :, :, k, l]", "columns[:, :, :, kh - 1 - k, kw - 1 - l]"),
        "w not transposed": ("taps, parts = transposed(w.reshape(-1, o))", "taps, parts = w.reshape(o, -1)"),
        "first image only": ("for part in _parts(g, w)\n    )", "for part in [slice(0, 1)]\n    )"),
    },
    "group_norm_backward": {
        "statistics taken for constants": ("out -= product", "pass"),
        "the mean forgotten": ("product += image_row(level, self.width)", "pass"),
        "the scale's share forgotten": ("xp.multiply(rows, image_row(along, self.width), out=product)", "product *= 0"),
        "gamma forgotten": ("image_row(rstd * self.gamma, self.width)", "image_row(rstd, self.width)"),
        "x for x_hat in dgamma": (" - mean * dbeta) * rstd", ")"),
    },
    "attention": {
        "not scaled": ("scale = 1 / math.sqrt(q.shape[-1])", "scale = 1"),
        "by D, not its root": ("scale = 1 / math.sqrt(q.shape[-1])", "scale = 1 / q.shape[-1]"),
        "softmax over the queries": ("scores, -xp.inf), -1)", "scores, -xp.inf), -2)"),
        "scale forgotten in the gradient": ("ds *= scale", "pass"),
        "softmax taken for its exponential": ("ds = softmax_gradient(p, dp, -1)", "ds = p * dp"),
        "hidden keys at 0": ("scores, -xp.inf)", "scores, 0)"),
        "not transposed": ("xp.matmul(p.swapaxes(-1, -2), g)", "xp.matmul(p, g)"),
    },
    "ema": {
        "weights changed places": ("average += (1 - d) *", "average += d *"),
        "no warm-up": ("d = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))", "d = self.decay"),
        "counted too early": ("(1 + self.num_updates) / (10 +", "(2 + self.num_updates) / (11 +"),
        "never counted": ("self.num_updates += 1", "pass"),
        "rounded away from itself": (
            "average += (1 - d) * (self.flat.data[piece] - average)",
            "average[...] = d * average + (1 - d) * self.flat.data[piece]",
        ),
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
            "wave(k * LONGEST_PERIOD ** (-i / half))",
            'wave(k * float(asarray(LONGEST_PERIOD ** (-i / half), "float32")))',
        ),
    },
}  # fmt: skip

# Where the original is written for speed: what a reader may write, in the words of the hints, in the cuts' order.
PLAIN = {
    "posterior": [
        "return self.one_minus_alpha_bar[s] * self.beta_t_given_s(t, s) / self.one_minus_alpha_bar[t]",
        """
        beta, below = schedule.beta_t_given_s(t, s), schedule.one_minus_alpha_bar[t]
        of_x_0 = schedule.alpha_bar[s] ** 0.5 * (beta / below)
        of_x_t = schedule.alpha_t_given_s(t, s) ** 0.5 * (schedule.one_minus_alpha_bar[s] / below)
        return per_row(of_x_0, x_t) * x_0 + per_row(of_x_t, x_t) * x_t, per_row(schedule.beta_tilde(t, s), x_t)
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
        grads = {id(places[-1]): g}
        for place in places[::-1]:
            g = grads[id(place)]
            if isinstance(place, Tensor):
                place._add_grad(g, False)
                continue
            for x, dx in zip(place.inputs, place.vjp(g)):
                if x is not None:
                    dx = dx() if callable(dx) else dx
                    grads[id(x)] = grads[id(x)] + dx if id(x) in grads else dx
        """,
        """
        order, seen, stack = [], {id(root)}, [(root, _inputs(root))]
        while stack:
            place, inputs = stack[-1]
            new = next((x for x in inputs if x is not None and id(x) not in seen), None)
            if new is None:
                order.append(stack.pop()[0])
            else:
                seen.add(id(new))
                stack.append((new, _inputs(new)))
        return order
        """,
    ],
    "conv2d": [
        """
        padded = xp.zeros((n, h + 2 * padding, wd + 2 * padding, c), x.dtype)
        padded[:, padding : padding + h, padding : padding + wd] = x
        _, oh, ow, _ = _output_shape(x, w, stride, padding)
        windows = xp.zeros((n, oh, ow, kh, kw, c), x.dtype)
        for k in range(kh):
            for l in range(kw):
                windows[:, :, :, k, l] = padded[:, k : k + stride * oh : stride, l : l + stride * ow : stride]
        return windows.reshape(n * oh * ow, kh * kw * c)
        """,
        """
        o = w.shape[3]
        y.reshape(-1, o)[...] = _columns(x, w, stride, padding) @ w.reshape(-1, o)
        if b is not None:
            _add(y, b, plus)
        """,
    ],
    "conv2d_backward": [
        """
        o = w.shape[3]
        return _add_columns(g.reshape(-1, o) @ w.reshape(-1, o).T, shape, w, stride, padding)
        """,
        "return _columns(x, w, stride, padding).T @ g.reshape(-1, w.shape[3])",
        """
        padded = xp.zeros((n, h + 2 * padding, wd + 2 * padding, c), columns.dtype)
        oh, ow = (h + 2 * padding - kh) // stride + 1, (wd + 2 * padding - kw) // stride + 1
        columns = columns.reshape(n, oh, ow, kh, kw, c)
        for i in range(oh):
            for j in range(ow):
                padded[:, i * stride : i * stride + kh, j * stride : j * stride + kw] += columns[:, i, j]
        return padded[:, padding : padding + h, padding : padding + wd]
        """,
    ],
    "group_norm_backward": [
        """
        x = self.x[part]
        n, c = len(x), x.shape[-1]
        flat = dz.reshape(n, self.pixels, c)
        rstd = self.rstd[part][:, None]
        x_hat = (x.reshape(n, self.pixels, c) - self.mean[part][:, None]) * rstd
        self.dbeta[part] = flat.sum(1)
        self.dgamma[part] = (flat * x_hat).sum(1)
        level = (self.dbeta[part] * self.gamma) @ self.group_mean
        along = (self.dgamma[part] * self.gamma) @ self.group_mean
        dx[...] = (rstd * (self.gamma * flat - level[:, None] - x_hat * along[:, None])).reshape(dx.shape)
        """
    ],
    "attention": [
        """
        scores = xp.matmul(q, k.swapaxes(-1, -2)) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = xp.where(asarray(mask), scores, -xp.inf)
        p = softmax_array(scores, -1)

        def vjp(g):
            ds = softmax_gradient(p, xp.matmul(g, v.swapaxes(-1, -2)), -1) / math.sqrt(q.shape[-1])
            return xp.matmul(ds, k), xp.matmul(ds.swapaxes(-1, -2), q), xp.matmul(p.swapaxes(-1, -2), g)

        return xp.matmul(p, v), vjp
        """
    ],
    "ema": [
        """
        d = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        self.data += (1 - d) * (self.flat.data - self.data)
        """
    ],
    "time_code": [
        """
        f = [LONGEST_PERIOD ** (-i / half) for i in range(half)]
        return [math.sin(k * w) for w in f] + [math.cos(k * w) for w in f]
        """
    ],
}
MISTAKES = [(name, mistake) for name, mistakes in WRONG.items() for mistake in mistakes]


@pytest.fixture(scope="module")
def demo(load_demo):
    return load_demo("exercise")


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
        for name in [name for name in os.environ if name.startswith("COVERAGE_")]:  # of copies that are gone by then
            patch.delenv(name)
        with context.Pool(1, maxtasksperchild=1) as pool:
            yield lambda *arguments: pool.apply_async(laws.run, arguments).get(timeout=300)  # a dead one never answers


@pytest.fixture(scope="module")
def copy(demo, exercises, tmp_path_factory):
    """copy(name, text): the folder of one working copy, in which the exercise's files have each been through `text`."""
    own = tmp_path_factory.mktemp("exercise")
    demo.make_copy(exercises["closed_form"], own)
    changed = {cut.file for cut in exercises["closed_form"].cuts}

    def write(name, text):
        cuts = exercises[name].cuts
        for file in changed | {cut.file for cut in cuts}:
            path, source = own / "tinydiff" / file, (ROOT / "tinydiff" / file).read_text(encoding="utf-8")
            path.write_text(text(source, [cut for cut in cuts if cut.file == file]), encoding="utf-8")
            Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)  # it knows seconds and sizes only
        changed.update(cut.file for cut in cuts)
        return own

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
    """Three or more each."""
    assert list(WRONG) == list(exercises)
    assert len(WRONG) >= 14 and min(map(len, WRONG.values())) >= 3


@pytest.mark.parametrize("name", WRONG)
def test_the_original_solves_it(name, exercises, copy, judge):
    """Every law holds for the package as it is, and each is there by its name."""
    found = judge(str(copy(name, lambda source, cuts: source)), exercises[name].laws)
    assert [law for law in found if not law["passed"]] == []
    assert {law["law"] for law in found} == set(exercises[name].laws)


def write_plain(demo, own, exercise):
    """Fill a working copy in, from the first place that waits to the last."""
    for cut, body in zip(exercise.cuts, PLAIN[exercise.name], strict=True):
        path = own / "tinydiff" / cut.file
        source = path.read_text(encoding="utf-8")
        (line,) = (line for line in source.splitlines() if f'"your turn: {cut.turn}"' in line)
        indent = line[: -len(line.lstrip())]
        path.write_text(source.replace(line, textwrap.indent(textwrap.dedent(body).strip(), indent)), encoding="utf-8")


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_way_of_the_hints_solves_it(name, demo, exercises, copy, judge):
    """The laws ask for the right numbers and not for the original's speed."""
    own = copy(name, demo.without)
    write_plain(demo, own, exercises[name])
    assert [law for law in judge(str(own), exercises[name].laws) if not law["passed"]] == []


@pytest.mark.parametrize("name", WRONG)
def test_every_law_waits_for_the_reader(name, demo, exercises, copy, judge):
    """On an untouched copy each law fails, because it is the reader's turn."""
    found = judge(str(copy(name, demo.without)), exercises[name].laws)
    assert [law for law in found if law["passed"] or "your turn: " not in law["error"]] == []


@pytest.mark.parametrize("name, mistake", MISTAKES, ids=[f"{name}-{mistake}" for name, mistake in MISTAKES])
def test_a_usual_mistake_does_not_solve_it(name, mistake, demo, exercises, copy, judge):
    """At least one law fails, not because the program cannot run, and it says so in words."""
    text, made = wrong(demo, WRONG[name][mistake])
    folder = copy(name, text)
    assert made, "the original has no such words"
    found = judge(str(folder), exercises[name].laws, True)
    assert [law["passed"] for law in found] == [True] * (len(found) - 1) + [False]
    assert found[-1]["error"] and found[-1]["says"]


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.fixture
def do(demo, tmp_path, capsys):
    """do("start", "ema"): main in a folder of its own; (exit code, what it printed on one line)."""

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


def test_an_exercise_from_start_to_end(demo, exercises, do, tmp_path):
    """Untouched it fails as the reader's turn; with the original it is solved; the list and the next start know."""
    _, said = do("start")
    place = tmp_path / "closed_form" / "tinydiff" / "diffusion" / "gaussian.py"
    number = 1 + place.read_text(encoding="utf-8").splitlines().index(
        '    raise NotImplementedError("your turn: x_t from x_0, t and eps (Ho et al. 2020, eq. 4)")'
    )
    assert f"Exercise 1 of {len(exercises)}: The closed form (about 10 minutes)" in said and f"{place}:{number}" in said
    assert do("list")[1].count("started") == 1

    code, said = do("check")
    assert code == 1 and "0 of 7 hold" in said and said.count("FAILED") == 7 and said.count("-> as above") == 6
    assert f"-> still to be written, {place}:{number}: x_t from x_0, t and eps" in said
    assert "FAILED the markov chain composes to the closed form t steps of eq. 2 in turn are q(x_t | x_0)" in said

    solve(demo, tmp_path, exercises["closed_form"])
    code, said = do("check")
    assert (
        code == 0
        and said.count("ok ") == 7
        and "ok unit variance is kept" in said
        and "FAILED" not in said
        and "Solved" in said
    )
    for part in (exercises["closed_form"].question, exercises["closed_form"].read_next, "exercise.py start posterior"):
        assert " ".join(part.split()) in said
    assert f"1 of {len(exercises)} solved" in do("list")[1]
    assert "Exercise 2 of" in do("start")[1]


def test_a_mistake_is_told_with_the_law_its_line_and_the_case(demo, exercises, do, tmp_path):
    """Of each law that failed: its words, how much is wrong, the line of the law, and for what it was asked."""
    do("start", "closed_form")
    solve(demo, tmp_path, exercises["closed_form"])
    path = tmp_path / "closed_form" / "tinydiff" / "diffusion" / "gaussian.py"
    right, wrong = ("signal_std = schedule.alpha_bar[t]" + end for end in (" ** 0.5", ""))
    path.write_text(path.read_text(encoding="utf-8").replace(right, wrong, 1), encoding="utf-8")
    code, said = do("check")
    assert code == 1 and "ok at t 0 nothing happens" in said
    assert "1 of 2 numbers are wrong, by up to 0.207" in said
    assert "test_gaussian.py:" in said and "np.testing.assert_allclose(signal, mean" in said
    assert "with T = 1, beta = [0.5]" in said


def test_what_is_no_python_and_what_never_ends_is_said(demo, do, tmp_path, monkeypatch):
    """A slip of the pen is a law that fails, with its line; a loop without an end is stopped."""
    do("start", "ema")
    path = tmp_path / "ema" / "tinydiff" / "optim.py"
    source = path.read_text(encoding="utf-8")
    (line,) = (line for line in source.splitlines() if "your turn" in line)
    path.write_text(source.replace(line, "        d = = 1"), encoding="utf-8")
    code, said = do("check")
    assert code == 1 and "FAILED optim.py is Python" in said and "SyntaxError: invalid syntax" in said
    assert f"{path}:{source.splitlines().index(line) + 1}: d = = 1" in said
    path.write_text(source.replace(line, "        while True:\n            pass"), encoding="utf-8")
    monkeypatch.setattr(demo, "LIMIT", 1)
    with pytest.raises(TinydiffError, match="stopped after 1 s: is there a loop in your code that never ends"):
        do("check")


def test_hints_come_one_at_a_time(demo, exercises, do):
    """The first, two, three, and then no more; each exercise counts its own."""
    do("start", "ema")
    hints = [" ".join(hint.split()) for hint in exercises["ema"].hints]
    for given in (1, 2, 3, 3):
        said = do("hint")[1]
        assert [hint in said for hint in hints] == [k < given for k in range(3)]
        assert ("no more hints" in said) == (given == 3)
    do("start", "time_code")
    assert "2. " not in do("hint")[1]
    assert hints[2] in do("hint", "ema")[1]  # which is worked on now
    assert hints[2] in do("hint")[1]


def test_the_solution_is_what_stood_there(exercises, do):
    """Every line that was taken out, with its place in the package."""
    do("start", "10")
    said = do("solution")[1]
    assert "tinydiff/ops/conv.py:" in said and ", _columns" in said and ", _correlate" in said
    for line in ("overlapping windows: this copies", "product(_columns(x[part], w, stride, padding)"):
        assert line in said
    assert "your turn" not in said


def test_work_is_not_overwritten_unless_asked(demo, do, tmp_path):
    """A second start is refused and names the way to start afresh, which forgets the hints as well."""
    do("start", "ema")
    do("hint")
    path = tmp_path / "ema" / "tinydiff" / "optim.py"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(TinydiffError, match=r"holds your work on ema: .* start ema --fresh --dir .* throws it away"):
        do("start", "ema")
    assert path.read_text(encoding="utf-8") == "mine"
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


def test_as_a_script_it_ends_with_an_exit_code(tmp_path):
    """2 for what a user got wrong, 1 for a check that fails, 0 else; --help shows the five commands."""

    def run(*arguments):
        command = [sys.executable, ROOT / "demos" / "exercise.py", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert run("start", "nonsense")[0] == run("check")[0] == 2
    assert run() == run("list") and "0 of 15 solved" in run()[1]
    assert run("start", "ema")[0] == 0 and (tmp_path / "runs" / "exercise" / "ema" / "tinydiff").is_dir()
    code, said = run("check")
    assert code == 1 and "still to be written, runs/exercise/ema/tinydiff/optim.py:" in " ".join(said.split())
    code, said = run("--help")
    assert code == 0 and all(f"exercise.py {word} " in said for word in ("list", "start", "check", "hint", "solution"))


def test_another_package_is_never_tested_in_the_copys_place(tmp_path):
    """Where the folder holds no tinydiff but one can be imported, the laws are not run, and that is said."""
    command = [sys.executable, ROOT / "tests" / "laws.py", tmp_path, "test_optim.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"{ROOT / 'tinydiff' / '__init__.py'} would be tested in place of the copy in {tmp_path}" in done.stderr


# ----------------------------------------------------------------------------------------------------------- the table


def test_a_copy_is_the_package_but_for_what_was_taken_out(demo, exercises, tmp_path):
    """Signatures, docstrings and all that stands around a cut stay: with the lines put back it is the file as it is."""
    for exercise in exercises.values():
        for file in {cut.file for cut in exercise.cuts}:
            cuts = [cut for cut in exercise.cuts if cut.file == file]
            source = (ROOT / "tinydiff" / file).read_text(encoding="utf-8")
            lines, left = source.splitlines(), demo.without(source, cuts).splitlines()
            for first, last in sorted(demo.region(source, cut) for cut in cuts):
                assert left[first - 1].strip().startswith('raise NotImplementedError("your turn: ')
                left[first - 1 : first] = lines[first - 1 : last]
            assert left == lines


def test_what_the_table_names_is_there(exercises):
    """Files to read next exist, an exercise takes 5 to 30 minutes, and no two have one name or one law twice."""
    for exercise in exercises.values():
        assert 5 <= exercise.minutes <= 30 and len(exercise.hints) == 3
        (place,) = re.findall(r"(?:tinydiff|demos)/[\w/]+\.py", exercise.read_next)
        assert (ROOT / place).is_file()
        assert len(set(exercise.laws)) == len(exercise.laws)
        assert exercise.question.endswith("?")
