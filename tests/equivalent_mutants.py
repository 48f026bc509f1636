"""Changes of one token that change nothing that anyone can see, and why: no test can fail for them.

Each entry: the file, a part of the line, a regular expression for the changed line, and the reason.  An empty file name
means every file.
"""

EQUIVALENT: list[tuple[str, str, str, str]] = [
    ("", ".reshape(", r"reshape\((.*, )?(~1|- 2)\b", "NumPy takes any one negative size as the size that is left"),
    ("", " != ", r"^[^#]* is not ", "small integers and NumPy's dtypes are one object each"),
    ("", " == ", r"^[^#]* is (?!not)", "small integers and interned strings are one object each"),
    ("", "lru_cache(", r"", "what is forgotten is computed again"),
    ("", "def ", r"/, ", "arguments after * are always given by name, those before it by position"),
    ("nn/unet.py", "if level < len(widths) - 1", r"level (!=|is not) ", "no level is above the last"),
    ("nn/unet.py", "if level > 0", r"level (!=|is not) ", "no level is below 0"),
    ("nn/unet.py", "self.label is None or", r" and ", "the two are None together"),
    ("diffusion/schedule.py", "table.size == 1", r"<= 1", "an empty table was refused two lines above"),
    ("diffusion/schedule.py", "outside = ", r"\) \* \(", "of two Booleans the product is the conjunction"),
    ("diffusion/guidance.py", 'host_integers("labels"', r"-1, no_label", "labels were checked when eps_fn was made"),
    ("diffusion/samplers.py", "if s > 0 else None", r"s != 0", "the step refuses a negative s"),
    ("diffusion/samplers.py", 'host_integers("s", s, 0', r"!= 0|s, -1,", "s is in 0..T: the step has checked it"),
    ("diffusion/likelihood.py", "if not ((abs(", r"\* \(level|<= 1e-3", "Booleans; no value lies 1e-3 off its level"),
    ("diffusion/likelihood.py", "schedule.check_times(t, s)[1]", r"<= 0", "s is in 0..T"),
    ("diffusion/likelihood.py", "(level ", r"level != ", "level is in 0..255"),
    ("diffusion/likelihood.py", "flip = ", r"", "a bin and its mirror image have one probability"),
    ("diffusion/likelihood.py", "_FAR", r"", "near the limit both formulas are right, to 1e-9"),
    ("ops/conv.py", "dx = xp.zeros((n, h", r"\*\*|<<|3 \* ", "room that is not needed is cut off"),
    ("ops/conv.py", "[1:3]) < 1", r"1: 4", "w was refused if it had no channels out"),
    ("ops/reduce.py", "return y[..., 0]", r"y\[\.\.\., -1", "an axis of size 1"),
    ("ops/reduce.py", "(x.size or 1)", r"or 2", "of an empty array the gradient is empty"),
    ("optim.py", "max_norm < norm < math.inf", r"!= math.inf|<= norm", "inf is the largest; clipping to itself is 1"),
    ("autograd.py", "if g.shape == shape", r" is shape", "a short cut"),
    ("autograd.py", "_numbers = count(1)", r"count\( ?\d", "only the order of the numbers counts"),
    ("autograd.py", "return sorted(places.values()", r"place: -1 if", "a leaf comes before every node either way"),
    ("autograd.py", "elif isinstance(x, Tensor) and not new", r" or not new", "a copy more than is needed"),
    (
        "points_2d.py",
        "distances >= distances[0]",
        r"> distances\[0\] - 1e-12",
        "1e-12 is a slack: none is that far apart",
    ),
    ("waves_1d.py", "near = ", r"<= 1\.1|>= 0\.9", "no frequency of the spectrum lies on these borders"),
    ("waves_1d.py", "to_numpy(x_t)[:, 0, :, 0]", r"-1", "axes of size 1"),
    ("exercise.py", 'action != "start"', r" < ", "of the five actions start is the last in the alphabet"),
    ("demos/", "quantize(", r"quantize\( \d", "a colour more or less of a saved picture"),
    (
        "demos/",
        "=",
        r"(fontsize|labelsize|lw|alpha|dpi|length|width|scale|zorder|framealpha|borderpad|handletextpad|\bs)= \d",
        "how large, how thick or how faint something is drawn",
    ),
    ("measure/on_cpu.py", "if p.ndim == 4", r">= 4", "no parameter has five axes"),
    ("measure/on_cpu.py", "build_unet(", r"channels}, 1\)", "shapes have no seed; the check draws weights anew"),
    ("measure/ours.py", "_wait(ema.average[-1])", r"", "work on one stream: any of its arrays waits for all"),
]
