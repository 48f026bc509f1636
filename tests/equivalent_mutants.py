"""Changes of one token that change nothing that anyone can see, and why: no test can fail for them.

Each entry: the file, a part of the line, a regular expression for the changed line, and the reason.  An empty file name
means every file.
"""

EQUIVALENT: list[tuple[str, str, str, str]] = [
    ("", ".reshape(", r"reshape\(.*(~1|- ?2)", "NumPy takes any one negative size as the size that is left"),
    ("", " != ", r" is not ", "small integers and NumPy's dtypes are one object each"),
    ("", " == ", r" is (?!not)", "small integers and interned strings are one object each"),
    ("autograd.py", "self._inputs: ", r"Tensor .* None", "annotations of attributes are never evaluated"),
    ("diffusion/schedule.py", "table.size == 1", r"<= 1", "an empty table was refused two lines above"),
    ("diffusion/schedule.py", "outside = ", r"\) \* \(", "of two Booleans the product is the conjunction"),
    ("diffusion/guidance.py", 'host_integers("labels"', r"-1, no_label", "labels were checked when eps_fn was made"),
    ("diffusion/samplers.py", "if s > 0 else None", r"s != 0", "the step refuses a negative s"),
    ("diffusion/samplers.py", 'host_integers("s", s, 0', r"!= 0|s, -1,", "s is in 0..T: the step has checked it"),
    ("diffusion/likelihood.py", "if not ((abs(", r"\* \(level|<= 1e-3", "Booleans; no value lies 1e-3 off its level"),
    ("diffusion/likelihood.py", "schedule.check_times(t, s)[1]", r"<= 0", "s is in 0..T"),
    ("diffusion/likelihood.py", "(level ", r"level != ", "level is in 0..255"),
    ("diffusion/likelihood.py", "flip = ", "", "a bin and its mirror image have one probability"),
    ("diffusion/likelihood.py", "_FAR", "", "near the limit both formulas are right, to 1e-9"),
    ("ops/reduce.py", "is_top = ", r">= top", "nothing is larger than the largest"),
    ("ops/reduce.py", "(x.size or 1)", r"or 2", "of an empty array the gradient is empty"),
    ("ops/conv.py", "b.ndim == 2", r">= 2", "b was checked to be (O,) or (N, O)"),
    ("ops/pointwise.py", "condition.dtype != bool", r"> bool", "every other numeric dtype is larger than bool"),
    ("ops/linear.py", "b.ndim == 1", r"<= 1", "b was checked to be (O,) or (N, O)"),
    (
        "ops/linear.py",
        "xp.ones((1, g.shape[-2])",
        r"ones\(\( 2|\.\.\., -1",
        "the one row of sums, twice, or from the end",
    ),
    ("ops/norm.py", "self.width = ", "", "how long the rows are that NumPy broadcasts over decides about speed alone"),
    ("ops/norm.py", "c // num_groups", r"c / num_groups", "it divides, and the quotient as a float is the same number"),
    ("ops/winograd.py", "_MIN_CHANNELS = ", "", "which of two ways to the same sum is the faster one"),
    (
        "ops/winograd.py",
        "padded = xp.zeros((n, 4 * i + 2",
        r"\+ 3",
        "no tile reads the row or column of zeros too many",
    ),
    ("ops/winograd.py", "stride == padding == 1", r"stride <= |padding <= 1", "a stride below 1 was refused before"),
    (
        "ops/winograd.py",
        "if (h, w) == (4 * i, 4 * j)",
        r"5 \*|4 \S+ [ij]\b|[<>]|is|!=",
        "saves a copy where tiles fill the map: the same numbers",
    ),
    ("optim.py", "PIECE = 1 << 15", "", "how much is updated at a time decides about speed alone"),
    ("optim.py", "owner = _owner(parameters[0])", r"-1\]", "the list is the owner's own only if both ends are"),
    ("optim.py", "step = PIECE if", "", "the same: in pieces for the cache, or at once"),
    ("optim.py", "max_norm < norm < math.inf", r"!= math.inf|<= norm", "inf is the largest; clipping to itself is 1"),
    ("ops/winograd.py", "backend_name() ==", r">= ", "of two names, numpy is the later"),
    ("ops/winograd.py", "@lru_cache", "", "keeps the small matrices instead of making them again"),
    ("autograd.py", "if g.shape == shape", r" is shape", "a short cut"),
    ("autograd.py", "stretched = ", r"g.shape\[i\] >= 1", "the sum over an axis of length 1 is the number itself"),
    ("optim.py", "len({p.dtype", r"!= 1", "no parameters at all were refused before"),
]
