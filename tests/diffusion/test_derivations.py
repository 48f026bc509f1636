"""The derivations of tinydiff/diffusion/README.md: every equation of the page is evaluated as it stands there.

The page's blocks are read as arithmetic: neighbours are a product, a/b c is (a/b) c, E[...] is a mean.  A name has the
value that the package computes, or, for a density, its definition.  So the page cannot drift from the code, and no line
of it can be wrong.  Means over noises are exact: three nodes integrate every polynomial up to degree five.
"""

import ast
import math
import re
import warnings
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, SimpleNamespace

import numpy as np
import pytest
from exact import mixture_eps_fn

from tinydiff import diffusion
from tinydiff.backend import asarray, to_numpy
from tinydiff.diffusion import Schedule, ScheduleWarning, gaussian_log_density

pytestmark = pytest.mark.process

PAGE = Path(diffusion.__file__).with_name("README.md")
TEXT = PAGE.read_text("utf-8").split("\n## Derivations\n")[1].split("\n## ")[0]
SECTIONS = dict(part.split("\n", 1) for part in TEXT.split("\n### ")[1:])
LINK = re.compile(r"\[([\w.]+)\]\(([^)]+)\)")
MAY_DEFINE = {"a", "b", "c", "x", "error", "var_best", "SNR_t", "SNR_s", "k_t", "k_s"}  # all other names are given
FUNCTIONS = {"sqrt", "log", "log_N", "Phi", "E"}


# ------------------------------------------------------------------------------------- from the page's text to numbers


def blocks(section: str) -> list[str]:
    return re.findall(r"```\n(.*?)```", section, re.DOTALL)


def chains(block: str) -> list[str]:
    """Its equations, each with the lines that continue it: those that begin with a space."""
    return [" ".join(chain.split()) for chain in re.sub(r"\n +", " ", block).strip().splitlines()]


@cache
def compiled(formula: str) -> tuple[CodeType, list[str]]:
    """A formula of the page as an expression of Python, in which log q(...) is density_i, the i-th of the list."""
    densities: list[str] = []

    def density(match: re.Match) -> str:
        densities.append(match[0])
        return f" density_{len(densities) - 1} "

    text = re.sub(r"(?:grad )?log (?:q|p|q_weak)\([^()]*\)", density, formula)
    text = re.sub(r"_\{(\w)\|(\w)\}", r"_\1_given_\2", text)
    text = text.replace("log N(", "log_N(").replace(";", ",").replace("| x_t]", "]").replace("[", "(").replace("]", ")")
    tokens = re.findall(r"[A-Za-z]\w*|[\d.]+|\S", text)
    code = tokens[0]
    for before, token in pairwise(tokens):
        ends = before == ")" or (re.match(r"[\w.]", before) and before not in FUNCTIONS)
        code += (" * " if ends and re.match(r"[\w.(]", token) else " ") + token
    return compile(code.replace("^", "**"), formula, "eval"), densities


def evaluate(section: str, given: dict, densities: dict) -> int:
    """Evaluate each equation of a section; how many there are.  AssertionError, with the line, if one does not hold."""
    names, count = {"pi": math.pi, "sqrt": np.sqrt, "log": np.log, "log_N": log_normal, "Phi": phi} | given, 0
    for chain in [chain for block in blocks(section) for chain in chains(block)]:
        first, *rest = re.split(r" (<=|=) ", chain)
        assert rest, f"no equation: {chain}"
        if first in MAY_DEFINE and first not in names:
            names[first] = value(rest[1], names, densities)
        values = [value(side, names | {"C": 0.0}, densities) for side in (first, *rest[1::2])]
        if re.search(r"\bC\b", chain):  # equal but for a number in which x_s does not occur
            assert np.ptp(given["x_s"]) > 0
            values = [v - v[0] for v in values]
        for left, sign, right in zip(values, rest[::2], values[1:]):
            size = np.abs(right).max() + 1
            holds = left - right <= 1e-9 * size if sign == "<=" else abs(left - right) <= 1e-9 * size
            assert np.all(holds), f"{chain}\n{left}\n{right}"
            count += 1
    return count


def value(formula: str, names: dict, densities: dict) -> np.ndarray:
    code, found = compiled(formula)
    with np.errstate(all="ignore"):  # of a wrong line: nan is no number that it could agree with
        return np.asarray(eval(code, {}, names | {f"density_{i}": densities[text] for i, text in enumerate(found)}))


def log_normal(x, mean, var):
    return -0.5 * ((x - mean) ** 2 / var + np.log(2 * math.pi * var))


phi = np.vectorize(lambda z: 0.5 * math.erfc(-z / 2**0.5))


def gradient(log_density, x):
    """d/dx of a function that also takes complex numbers, without a difference of two near values."""
    return log_density(x + 1e-30j).imag / 1e-30


def ask(function, *arguments, **options):
    """What a function of the package returns for host arrays (N,), as host arrays (N,); a single number stays one."""
    columns = [asarray(a[:, None]) if np.ndim(a) else a for a in arguments]
    result = function(*columns, **options)
    parts = [np.asarray(to_numpy(a)) for a in (result if isinstance(result, tuple) else (result,))]
    parts = [a[:, 0] if a.ndim == 2 else a for a in parts]
    return tuple(parts) if isinstance(result, tuple) else parts[0]


# --------------------------------------------------------------------------- what the names of a section stand for


def case(seed: int) -> SimpleNamespace:
    """A schedule of 4 to 12 steps that ends at t, s < t, and three noises on a grid whose weighted sum is the mean."""
    rng = np.random.default_rng(seed)
    T = int(rng.integers(4, 13))
    t = T
    s = int(rng.integers(1, t))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        schedule = Schedule(10 ** rng.uniform(-2, -0.4, T))
    nodes, weights = np.array([-(3**0.5), 0, 3**0.5]), np.array([1, 4, 1]) / 6
    eps, noise, third = (a.ravel() for a in np.meshgrid(nodes, nodes, nodes, indexing="ij"))
    weight = np.einsum("i,j,k", weights, weights, weights).ravel()
    return SimpleNamespace(rng=rng, schedule=schedule, t=t, s=s, weight=weight, eps=eps, noise=noise, third=third)


def tables(c: SimpleNamespace) -> dict:
    """The entries of the schedule, and E[...] over the case's grid."""
    schedule, t, s = c.schedule, c.t, c.s
    return {
        "alpha_bar_t": schedule.alpha_bar[t],
        "alpha_bar_s": schedule.alpha_bar[s],
        "alpha_t_given_s": schedule.alpha_t_given_s(t, s),
        "beta_t_given_s": schedule.beta_t_given_s(t, s),
        "beta_tilde_t_given_s": schedule.beta_tilde(t, s),
        "E": lambda values: (c.weight * values).sum(),
    }


def forward(c: SimpleNamespace, x_0) -> dict:
    """A chain of two jumps, from x_0 to x_s to x_t, at each node of eps_s and noise."""
    x_0 = np.broadcast_to(x_0, c.weight.shape)
    x_s = ask(diffusion.q_sample, c.schedule, x_0, c.s, c.eps)
    mean, var = ask(diffusion.q_x_t_given_x_s, c.schedule, x_s, c.s, c.t)
    x_t = mean + var**0.5 * c.noise
    return {"x_0": x_0, "x_s": x_s, "x_t": x_t, "eps_s": c.eps, "noise": c.noise} | {
        "eps": ask(diffusion.eps_from_x_0, c.schedule, x_t, c.t, x_0)
    }


def of_q(c: SimpleNamespace, x_0, x_s, x_t, **_) -> dict:
    """The densities of the forward process, from its means and variances in the package."""

    def log_q(x, mean_and_var):
        return log_normal(x, *mean_and_var)

    jump, posterior, schedule, t, s = diffusion.q_x_t_given_x_s, diffusion.q_x_s_given_x_t_x_0, c.schedule, c.t, c.s
    return {
        "log q(x_t | x_s)": log_q(x_t, ask(jump, schedule, x_s, s, t)),
        "log q(x_s | x_0)": log_q(x_s, ask(jump, schedule, x_0, 0, s)),
        "log q(x_t | x_0)": log_q(x_t, ask(jump, schedule, x_0, 0, t)),
        "log q(x_s | x_t, x_0)": log_q(x_s, ask(posterior, schedule, x_t, x_0, t, s)),
    }


def steps_compose(c):
    return tables(c) | forward(c, c.rng.normal()), {}


def the_posterior(c):
    x_s, (x_0, x_t) = c.rng.normal(size=7), (np.full(7, c.rng.normal()) for _ in range(2))
    mean, _ = ask(diffusion.q_x_s_given_x_t_x_0, c.schedule, x_t, x_0, c.t, c.s)
    eps = ask(diffusion.eps_from_x_0, c.schedule, x_t, c.t, x_0)
    names = {"x_0": x_0, "x_s": x_s, "x_t": x_t, "mean": mean, "eps": eps}
    return tables(c) | names, of_q(c, **names)


def least_squared_error(c):
    """x_t is one number; it may have come from four points, each with its probability after Bayes."""
    x_0, prior, x_t = c.rng.normal(size=4), c.rng.dirichlet(np.ones(4)), c.rng.normal()
    a = c.schedule.alpha_bar[c.t]

    def log_q(x):
        return np.log((prior * np.exp(log_normal(x, a**0.5 * x_0, 1 - a))).sum())

    names = {"x_0": x_0, "x_t": x_t, "eps": ask(diffusion.eps_from_x_0, c.schedule, np.full(4, x_t), c.t, x_0)}
    joint = prior * np.exp(log_normal(x_t, a**0.5 * x_0, 1 - a))
    mean = {"E": lambda values: (joint / joint.sum() * values).sum(), "eps_hat": c.rng.normal()}
    return tables(c) | names | mean, {
        "grad log q(x_t)": gradient(log_q, x_t),
        "grad log q(x_t | x_0)": gradient(lambda x: log_normal(x, a**0.5 * x_0, 1 - a), x_t),
    }


def the_bound(c):
    """The model's eps_hat is a multiple of x_t, so that p(x_0) is a Gaussian whose variance two steps add up."""
    schedule, t, s, slope = c.schedule, c.t, c.s, c.rng.uniform(0.2, 1)
    names = forward(c, c.rng.normal())
    x_0, x_s, x_t = (names[name] for name in ("x_0", "x_s", "x_t"))
    one = np.ones(1)

    def down(x, t, s):  # mean of the step, and x_0_hat
        return ask(diffusion.ddpm_step, schedule, x, slope * x, t, s, 0 * x)

    p_mean, x_0_hat = down(x_t, t, s)
    q_mean, beta_tilde = ask(diffusion.q_x_s_given_x_t_x_0, schedule, x_t, x_0, t, s)
    decoder_mean, beta_0 = down(x_s, s, 0)[0], schedule.beta_t_given_s(s, 0)
    var_s = down(one, t, s)[0] ** 2 + schedule.beta_tilde(t, s)
    var_0 = down(one, s, 0)[0] ** 2 * var_s + beta_0
    options = {"decoder": gaussian_log_density}
    mean_1, mean_2, var_1, var_2 = *c.rng.normal(size=2), *c.rng.uniform(0.2, 3, 2)
    names |= {
        "eps_hat": slope * x_t, "x_0_hat": x_0_hat, "p_mean": p_mean, "q_mean": q_mean,
        "L_T": ask(diffusion.prior_kl, schedule, x_0),
        "L_s": ask(diffusion.bound_term, schedule, x_0, x_t, slope * x_t, t, s),
        "L_0": ask(diffusion.bound_term, schedule, x_0, x_s, slope * x_s, s, 0, **options),
        "mean_1": mean_1, "mean_2": mean_2, "var_1": var_1, "var_2": var_2, "z": c.eps,
        "KL": to_numpy(diffusion.gaussian_kl(*(asarray(np.array([a])) for a in (mean_1, var_1, mean_2, var_2)))),
    }  # fmt: skip
    signal, kept = np.sqrt(schedule.alpha_bar[[s, t]]), schedule.alpha_t_given_s(t, s) ** 0.5
    noise_s, noise_t = schedule.one_minus_alpha_bar[[s, t]]
    covariance = np.array([[noise_s, kept * noise_s], [kept * noise_s, noise_t]])
    off = np.stack([x_s, x_t]) - signal[:, None] * x_0
    square = (off * np.linalg.solve(covariance, off)).sum(0)
    of_p = {
        "log p(x_t)": log_normal(x_t, 0, 1),
        "log p(x_s | x_t)": log_normal(x_s, p_mean, beta_tilde),
        "log p(x_0 | x_s)": log_normal(x_0, decoder_mean, beta_0),
        "log p(x_0)": log_normal(x_0, 0, var_0),
    }
    together = sum(of_p[name] for name in ("log p(x_t)", "log p(x_s | x_t)", "log p(x_0 | x_s)"))
    joint = {
        "log p(x_0, x_s, x_t)": together,
        "log q(x_s, x_t | x_0)": -square / 2 - np.log(np.linalg.det(covariance)) / 2 - math.log(2 * math.pi),
    }
    return tables(c) | names, of_q(c, **names) | of_p | joint


def the_last_term(c):
    level = c.rng.integers(1, 255, 3) / 127.5 - 1
    x_1 = ask(diffusion.q_sample, c.schedule, level, 1, c.rng.normal(size=3))
    eps_hat = ask(diffusion.eps_from_x_0, c.schedule, x_1, 1, level + 0.1 * c.rng.normal(size=3))
    x_0_hat = ask(diffusion.x_0_from_eps, c.schedule, x_1, 1, eps_hat)
    beta, beta_tilde = (v(c.schedule, 1, 0) for v in (Schedule.beta_t_given_s, diffusion.clipped_beta_tilde))

    def term(x_0, **options):
        return ask(diffusion.bound_term, c.schedule, x_0, x_1, eps_hat, 1, 0, **options)

    return {
        "alpha_bar_1": c.schedule.alpha_bar[1], "alpha_bar_2": c.schedule.alpha_bar[2],
        "beta_1": c.schedule.beta[1], "beta_2": c.schedule.beta[2],
        "beta_1_given_0": beta, "beta_tilde_2_given_1": beta_tilde, "x_0": level, "x_0_hat": x_0_hat,
        "L_0_at_beta": term(level, decoder=gaussian_log_density),
        "L_0_at_beta_tilde": term(
            level, decoder=gaussian_log_density, decoder_variance=diffusion.clipped_beta_tilde
        ),
        "P_at_beta": np.exp(-term(level)), "P_of_black": np.exp(-term(-np.ones(3))),
    }, {}  # fmt: skip


def the_best_variance(c):
    """x_0 is spread about x_0_hat, and x_t is one number."""
    x_t, spread, var = np.full(len(c.eps), c.rng.normal()), c.rng.uniform(0.1, 1), c.rng.uniform(0.05, 1)
    eps_hat = np.full(len(c.eps), c.rng.normal())
    x_0_hat = ask(diffusion.x_0_from_eps, c.schedule, x_t, c.t, eps_hat)
    x_0 = x_0_hat + spread * c.eps

    def L_s(variance):
        return ask(diffusion.bound_term, c.schedule, x_0, x_t, eps_hat, c.t, c.s, variance=variance)

    def best(schedule, t, s):
        return diffusion.error_variance(schedule, asarray(np.full((len(x_0), 1), spread**2)), t, s)

    names = {"x_0": x_0, "x_0_hat": x_0_hat, "var": var, "L_s": L_s(lambda *_: var), "L_s_at_best": L_s(best)}
    return tables(c) | names, {}


def ddims_family(c):
    eta, x_0 = c.rng.uniform(0.1, 0.9), np.full(len(c.eps), c.rng.normal())
    x_t = ask(diffusion.q_sample, c.schedule, x_0, c.t, c.eps)

    def step(eta):
        return ask(diffusion.ddim_step, c.schedule, x_t, c.eps, c.t, c.s, c.noise, eta=eta)[0]

    mean, beta_tilde = ask(diffusion.q_x_s_given_x_t_x_0, c.schedule, x_t, x_0, c.t, c.s)
    names = {"x_0": x_0, "x_t": x_t, "x_s": step(eta), "x_s_at_eta_0": step(0), "eps": c.eps, "noise": c.noise}
    return tables(c) | names | {"mean": mean, "eta": eta, "var": eta**2 * beta_tilde}, {}


def guidance(c):
    """Four places in a line, of which two belong to the label y; the weak network knows them less sharply."""
    schedule, t, x_t = c.schedule, c.t, c.rng.normal(size=5)
    places, weights, var, weak_var = c.rng.normal(size=(4, 1)), c.rng.dirichlet(np.ones(4)), 0.1, 0.4
    scale, w, a = c.rng.uniform(1.5, 4), c.rng.uniform(1.5, 3), schedule.alpha_bar[t]

    def log_density(of, var):
        def log_q(x):
            parts = log_normal(x[:, None], a**0.5 * places[of, 0], a * var + 1 - a)
            return np.log((np.exp(parts) * weights[of] / weights[of].sum()).sum(1))

        return log_q

    def ideal(of, var):
        return mixture_eps_fn(schedule, weights[of] / weights[of].sum(), places[of], var)

    def model(x, t, labels):
        eps = [fn(x, t) for fn in (ideal(slice(2), var), ideal(slice(4), var))]
        return asarray(np.where(np.reshape(labels, (-1, 1)) == 0, *map(to_numpy, eps)))

    model.num_classes = 1
    log_q, log_q_y, log_weak = (log_density(*kind) for kind in ((slice(4), var), (slice(2), var), (slice(2), weak_var)))
    log_prior = math.log(weights[:2].sum())

    def log_p(x):
        return log_q_y(x) + log_prior - log_q(x)

    def score(x, t):
        return asarray(gradient(log_p, to_numpy(x)[:, 0])[:, None])

    unconditional, with_y = diffusion.unconditional(model), diffusion.classifier_free(model, 0, 1)
    weak = ideal(slice(2), weak_var)
    estimates = {
        "eps_u": unconditional,
        "eps_c": with_y,
        "eps_weak": weak,
        "eps_hat": diffusion.classifier_free(model, 0, scale),
        "eps_hat_of_classifier": diffusion.classifier_guided(schedule, unconditional, score, scale),
        "eps_hat_of_two": diffusion.guided(with_y, weak, w),
    }
    names = {name: ask(eps_fn, x_t, t) for name, eps_fn in estimates.items()} | {"scale": scale, "w": w}
    densities = {"log q(x_t)": log_q, "log q(x_t | y)": log_q_y, "log q_weak(x_t | y)": log_weak}
    densities |= {"log p(y | x_t)": log_p}
    slopes = {f"grad {name}": gradient(f, x_t) for name, f in densities.items()}
    return tables(c) | names, {name: f(x_t) for name, f in densities.items()} | slopes | {"log p(y)": log_prior}


def other_names(c):
    std = c.rng.uniform(0.3, 2)
    x_0, schedule, t = std * c.third, c.schedule, c.t
    x_t = ask(diffusion.q_sample, schedule, x_0, t, c.eps)
    c_skip, c_out, c_in = diffusion.preconditioning(schedule, t, std)
    sigma = diffusion.noise_levels(schedule)
    tau = np.array([0.0, *(sigma / (1 + sigma))[1:]])
    u = ask(diffusion.u_from_x_0_eps, schedule, x_0, t, c.eps)
    return tables(c) | {
        "x_0": x_0, "x_t": x_t, "eps": ask(diffusion.eps_from_u, schedule, x_t, t, u), "u": u,
        "x_s": ask(diffusion.ddim_step, schedule, x_t, c.eps, t, c.s, None)[0],
        "v": ask(diffusion.v_from_x_0_eps, schedule, x_0, t, c.eps),
        "sigma_t": sigma[t], "tau_t": tau[t], "tau_s": tau[c.s], "sigma_data": std,
        "c_skip": c_skip, "c_out": c_out, "c_in": c_in,
        "F": ask(diffusion.F_from_x_0_eps, schedule, x_0, t, c.eps, sigma_data=std),
        "F_for_variance_1": ask(diffusion.F_from_x_0_eps, schedule, x_0, t, c.eps, sigma_data=1.0),
    }, {}  # fmt: skip


GIVEN = {
    "Steps compose": steps_compose,
    "The posterior, by completing the square": the_posterior,
    "What the least squared error learns": least_squared_error,
    "The bound, term by term": the_bound,
    "The last term, by both conventions": the_last_term,
    "The best variance of a step": the_best_variance,
    "DDIM's family": ddims_family,
    "Guidance is Bayes' rule": guidance,
    "Other names: v, rectified flow and EDM": other_names,
}


# ------------------------------------------------------------------------------------------------------------- the laws


@pytest.mark.parametrize("title", SECTIONS)
def test_every_equation_of_the_page_holds(title):
    """As it is written there, for random schedules, times, data and networks."""
    for seed in range(6):
        assert evaluate(SECTIONS[title], *GIVEN[title](case(seed))) >= 5


WRONG = [(" + ", " - "), (" - ", " + "), ("^2", "^3"), ("sqrt(", "("), ("_s ", "_t "), ("1/2 ", "2 "), (" <= ", " = ")]


@pytest.mark.parametrize("title", SECTIONS)
def test_a_wrong_equation_of_the_page_would_be_noticed(title):
    """Each sign, square, root, half and index changed, one at a time: some equation of the section no longer holds."""
    given, densities = GIVEN[title](case(0))
    code = "\n".join(f"```\n{block}```" for block in blocks(SECTIONS[title]))
    for right, wrong in WRONG:
        for place in re.finditer(re.escape(right), code):
            changed = code[: place.start()] + wrong + code[place.end() :]
            if changed[place.start() :].startswith((f"{wrong}C", f"{wrong}sqrt(var_1) z")):
                continue  # neither a constant nor noise changes with its sign
            with pytest.raises((AssertionError, KeyError, NameError)):
                evaluate(changed, given, densities)
                print(f"not noticed: {code[place.start() - 60 : place.end() + 30]!r}: {wrong!r}")


@pytest.mark.parametrize("title", SECTIONS)
def test_below_each_block_stand_its_code_and_its_laws(title):
    """Every block is followed, sooner or later, by functions of the package and laws of the suite; all exist."""
    parts = re.split(r"\nCode: (.*?)\.(?: |\n)Law:\s(.*?)\.\n", SECTIONS[title] + "\n", flags=re.DOTALL)
    assert len(parts) > 1 and "```" not in parts[-1]
    for before, *named in zip(parts[::3], parts[1::3], parts[2::3]):
        assert "```" in before
        for text in named:
            links = LINK.findall(text)
            assert links and len(links) == text.count("](")
            for name, file in links:
                assert name in qualified_names(PAGE.parent / file), f"{name} is not in {file}"
        assert all(file.split("/")[-1].startswith("test_") for _, file in LINK.findall(named[1]))


@cache
def qualified_names(file: Path) -> set[str]:
    """The functions of a file, those of a class with its name before them."""
    tree = ast.parse(file.read_text("utf-8"))
    methods = [(c.name, f) for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body]
    inner = {f"{name}.{f.name}" for name, f in methods if isinstance(f, ast.FunctionDef)}
    return inner | {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}


def test_the_numbers_of_the_derivations_are_those_of_the_linear_schedule(linear):
    """The share of the last step's noise that x_t tells, and the two variances of the decoder."""
    share = linear.beta[1:] / linear.one_minus_alpha_bar[1:]
    (numbers,) = re.findall(r"it is ([\d.]+) at t = 2, ([\d.]+) at t = 100 and ([\d.]+) at t = 500", TEXT)
    assert numbers == tuple(f"{share[t - 1]:.{digits}f}" for t, digits in ((2, 2), (100, 3), (500, 3)))
    assert share[0] == 1 and "(At t = 1 it is 1.)" in TEXT
    (numbers,) = re.findall(r"For the linear schedule they are ([\de.-]+) and ([\de.-]+),", TEXT)
    assert [float(a) for a in numbers] == [linear.beta[1], float(f"{linear.beta_tilde(2, 1):.1e}")]


@pytest.mark.parametrize("page", ["README.md", "demos/README.md"])
def test_a_link_to_a_derivation_leads_to_its_section(page):
    """The part of the address after # is a title in small letters, without marks, and - for a space."""
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in SECTIONS}
    linked = re.findall(r"tinydiff/diffusion/README\.md(?:#([\w-]+))?\)", (PAGE.parents[2] / page).read_text("utf-8"))
    assert linked and {name for name in linked if name} <= anchors


def test_neighbours_are_a_product_from_left_to_right():
    """a/b c is (a/b) c, a square binds first, a function's bracket is no factor, and E[a | x_t] is E[a]."""
    names = {"a": 3.0, "b": 4.0, "c_t_given_s": 5.0, "sqrt": np.sqrt, "E": lambda x: x + 1}
    for formula, known in (
        ("a/b c_{t|s}", 3.75), ("2 a^2 b", 72), ("2 (a - b) b", -8), ("sqrt(b) a", 6), ("1/2 sqrt(4 b) (a)", 6),
        ("-a b + E[a | x_t]", -8), ("(a + b)(a - b)", -7), ("1/a^2", 1 / 9), ("a E[b]", 15), ("0.5 a", 1.5),
    ):  # fmt: skip
        assert value(formula, names, {}) == known, formula
    assert value("2 log q(x_t | y) - log q(x_t)", {}, {"log q(x_t | y)": 5.0, "log q(x_t)": 1.0}) == 9
    assert value("a grad log q(x_t)", names, {"grad log q(x_t)": 2.0}) == 6
