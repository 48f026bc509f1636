"""Wrong lines that readers of the exercises write, five or more an exercise, and what a check says to each.

Each row: the mistake's name, the original's words, the wrong ones, and the end of the sentence that names the mistake.
The words lie within the statements that the exercise takes out.  See tests/demos/exercises/test_cases.py.
"""

WRONG = {
    "closed_form": {
        "sqrt forgotten": (
            "signal_std = schedule.alpha_bar[t] ** 0.5",
            "signal_std = schedule.alpha_bar[t]",
            "this is alpha_bar_t, a variance. The factor of x_0 is its square root.",
        ),
        "alpha for alpha_bar": (
            "schedule.alpha_bar[t]",
            "schedule.alpha[t]",
            "this is made with alpha_t, the share that one step leaves. alpha_bar_t is what is left after t steps.",
        ),
        "t off by one": (
            "one_minus_alpha_bar[t] ** 0.5",
            "one_minus_alpha_bar[t - 1] ** 0.5",
            "this is the entry for t - 1. The tables begin with t = 0, so t itself is the index.",
        ),
        "noise taken away": (
            "* x_0 + per_row",
            "* x_0 - per_row",
            "eps is subtracted. The two terms of eq. 4 are added.",
        ),
        "signal and noise changed places": (
            "per_row(signal_std, x_0) * x_0",
            "per_row(noise_std, x_0) * x_0",
            "this is the factor of eps. The two factors have changed places.",
        ),
        "1 - alpha_bar in float32": (
            "per_row(noise_std, x_0)",
            'per_row((1 - schedule.alpha_bar[t].astype("float32")) ** 0.5, x_0)',
            "1 - alpha_bar_t subtracts two numbers that are nearly equal, and loses the digits in which they agree. "
            "schedule.one_minus_alpha_bar[t] has all of them. beta_t_given_s(t, s) has those of 1 - alpha_{t|s}.",
        ),
        "the root after the cast": (
            "per_row(signal_std, x_0) * x_0",
            "per_row(signal_std**2, x_0) ** 0.5 * x_0",
            "Take the root of the table's float64 number: per_row casts the factor last.",
        ),
        "1 - alpha_bar": (
            "schedule.one_minus_alpha_bar[t] ** 0.5",
            "(1 - schedule.alpha_bar[t]) ** 0.5",
            "1 - alpha_bar_t subtracts two numbers that are nearly equal, and loses the digits in which they agree. "
            "schedule.one_minus_alpha_bar[t] has all of them. beta_t_given_s(t, s) has those of 1 - alpha_{t|s}.",
        ),
        "no return": (
            "return per_row(signal_std",
            "_ = per_row(signal_std",
            "x_t is None. Is there a return?",
        ),
        "the root of the sum": (
            "noise_std = schedule.one_minus_alpha_bar[t] ** 0.5",
            "noise_std = 1 - signal_std",
            "this is 1 - sqrt(alpha_bar_t). The variances add up to 1, not the factors.",
        ),
        "NaN": (
            "schedule.one_minus_alpha_bar[t] ** 0.5",
            "(schedule.alpha_bar[t] - 1) ** 0.5",
            "x_t is NaN. NaN comes from the root or the log of a negative number, from 0/0, and from 0 times infinity.",
        ),
    },
    "posterior": {
        "beta for beta_tilde": (
            "self.one_minus_alpha_bar[s] / self.one_minus_alpha_bar[t] * ",
            "",
            "this is beta_{t|s}, the variance of the jump from s to t. The posterior also knows x_0, so its variance "
            "is smaller.",
        ),
        "t for s": (
            "x_0_coef = schedule.alpha_bar[s] ** 0.5",
            "x_0_coef = schedule.alpha_bar[t] ** 0.5",
            "this has sqrt(alpha_bar_t). The posterior is about x_s, so it is sqrt(alpha_bar_s).",
        ),
        "sqrt forgotten": (
            "schedule.alpha_t_given_s(t, s) ** 0.5",
            "schedule.alpha_t_given_s(t, s)",
            "this has alpha_{t|s} without its square root.",
        ),
        "x_0 and x_t changed places": (
            "per_row(x_0_coef, x_t) * x_0 + per_row(x_t_coef, x_t) * x_t",
            "per_row(x_0_coef, x_t) * x_t + per_row(x_t_coef, x_t) * x_0",
            "this is the factor of x_t. x_0 and x_t have changed places.",
        ),
        "sign flipped (eq. 7)": (
            "* x_0 + per_row(x_t_coef",
            "* x_0 - per_row(x_t_coef",
            "the sign is wrong: the two terms of eq. 7 are added.",
        ),
        "1 - alpha_bar": (
            "one_minus_alpha_bar = schedule.one_minus_alpha_bar",
            "one_minus_alpha_bar = 1 - schedule.alpha_bar",
            "1 - alpha_bar_t subtracts two numbers that are nearly equal, and loses the digits in which they agree. "
            "schedule.one_minus_alpha_bar[t] has all of them. beta_t_given_s(t, s) has those of 1 - alpha_{t|s}.",
        ),
        "the mean alone": (
            "return mean, per_row(schedule.beta_tilde(t, s), x_t)",
            "return mean",
            "the function returns one thing, and should return two: mean and var.",
        ),
        "the ratio upside down": (
            "self.one_minus_alpha_bar[s] / self.one_minus_alpha_bar[t]",
            "self.one_minus_alpha_bar[t] / self.one_minus_alpha_bar[s]",
            "the ratio is upside down. It is (1 - alpha_bar_s)/(1 - alpha_bar_t).",
        ),
    },
    "schedules": {
        "not scaled with T": (
            "_T_REF / T * (_BETA_FIRST",
            "1.0 * (_BETA_FIRST",
            "beta is not scaled. With fewer steps each adds more noise, by the factor 1000/T.",
        ),
        "t off by one": (
            "u = _ramp(T)",
            "u = np.arange(1, T + 1) / T",
            "u is t/T. It is (t - 1)/(T - 1), which is 0 at t = 1: _ramp(T) returns it.",
        ),
        "cosine not squared": (
            "* np.pi / 2) ** 2",
            "* np.pi / 2)",
            "the cosine is not squared.",
        ),
        "no cap": (
            "np.minimum(1 - f[1:] / f[:-1], 0.999)",
            "1 - f[1:] / f[:-1]",
            "the cap is missing: beta_t is at most 0.999.",
        ),
        "no offset": (
            "(np.arange(T + 1) / T + 0.008) / 1.008",
            "(np.arange(T + 1) / T)",
            "the offset 0.008 is missing. Without it the first beta is too small.",
        ),
        "alpha_bar for beta": (
            "np.minimum(1 - f[1:] / f[:-1], 0.999)",
            "np.minimum(1 - f[1:] / f[0], 0.999)",
            "this is 1 - alpha_bar_t. beta_t is 1 - alpha_bar_t/alpha_bar_{t-1}, and cls takes beta.",
        ),
    },
    "training_loss": {
        "t = T never trained": (
            "integers(1, schedule.T + 1,",
            "integers(1, schedule.T,",
            "t = T is never drawn: rng.integers(low, high, n) never returns high.",
        ),
        "t from 0": (
            "integers(1, schedule.T + 1,",
            "integers(0, schedule.T,",
            "t = 0 is drawn, where there is no noise to predict. t = T is never drawn.",
        ),
        "other noise in the target": (
            "target.of(schedule, x_0, t, eps)",
            'target.of(schedule, x_0, t, rng.standard_normal(x_0.shape, dtype="float32"))',
            "x_t and the target do not belong together. One eps makes x_t, by q_sample, and is the target.",
        ),
        "one noise for every step": (
            "eps = rng.standard_normal(",
            "eps = default_rng(0).standard_normal(",
            "steps 0 and 1 have the same noise. Draw it from rng, whose stream is named by the step.",
        ),
        "one t for the whole batch": (
            "schedule.T + 1, n)",
            "schedule.T + 1, 1).repeat(n)",
            "t is the same for the whole batch. Each example draws its own t (algorithm 1, line 3).",
        ),
        "sum for mean": (
            "ops.mean(error",
            "ops.total(error",
            "this is the sum over the pixels. The loss is their mean.",
        ),
        "fourth power for square": (
            "ops.mean(error * error,",
            "ops.mean(error * error * error * error,",
            "this is the fourth power. The loss is the mean square.",
        ),
        "mean over rows and columns only": (
            "axis=(1, 2, 3)",
            "axis=(1, 2)",
            "each channel has a loss of its own. The mean also runs over axis 3, the channels.",
        ),
        "x_0 in the target": (
            "target.of(schedule, x_0, t, eps)",
            "x_0",
            "the target is x_0. The network learns to predict the noise eps.",
        ),
        "one loss for the batch": (
            "ops.mean(error * error, axis=(1, 2, 3))",
            "ops.mean(error * error)",
            "this is one number for the batch. Each example has its own loss: axis 0 stays.",
        ),
        "the error itself": (
            "error * error",
            "error",
            "the error is not squared.",
        ),
    },
    "ddpm_step": {
        "variance for standard deviation": (
            "per_row(var**0.5, mean)",
            "per_row(var, mean)",
            "this is the variance. Noise enters with its square root.",
        ),
        "noise in the last step": (
            " * per_row(host_integers",
            " + 0 * per_row(host_integers",
            "noise enters the data. At s = 0 the mean is the data, whatever the variance is.",
        ),
        "clip forgotten": (
            "x_t, eps_hat, t, clip)",
            "x_t, eps_hat, t, False)",
            "x_0_hat is not clipped, although the caller asks for it.",
        ),
        "beta_tilde whatever is asked for": (
            "variance(schedule, t, s)",
            "schedule.beta_tilde(t, s)",
            "the variance is beta_tilde, whatever the caller asks for. Call variance(schedule, t, s).",
        ),
        "eps_hat for x_0_hat": (
            "x_t, x_0_hat, t, s)",
            "x_t, eps_hat, t, s)",
            "this is the posterior with eps_hat in place of x_0. It takes x_0_hat, the guess at x_0.",
        ),
        "x_0_hat first": (
            "return _add_noise(schedule, mean, to_numpy(variance(schedule, t, s)), s, noise), x_0_hat",
            "return x_0_hat, _add_noise(schedule, mean, to_numpy(variance(schedule, t, s)), s, noise)",
            "this is x_0_hat. The first of the two results is x_s, which is drawn around the mean of the posterior.",
        ),
    },
    "ddim_step": {
        "eps at t for s": (
            "(schedule.one_minus_alpha_bar[s] - var)",
            "(schedule.one_minus_alpha_bar[t] - var)",
            "this has 1 - alpha_bar_t. The step ends at s, so eps_hat gets sqrt(1 - alpha_bar_s - var).",
        ),
        "signal at t for s": (
            "signal_std = schedule.alpha_bar[s]",
            "signal_std = schedule.alpha_bar[t]",
            "this has sqrt(alpha_bar_t). The step ends at s, so x_0_hat gets sqrt(alpha_bar_s).",
        ),
        "sign of eps flipped": (
            "* x_0_hat + per_row",
            "* x_0_hat - per_row",
            "the sign of eps_hat's term is wrong: eq. 12 adds it.",
        ),
        "eps not less for the noise": (
            "[s] - var).clip(0)",
            "[s]).clip(0)",
            "eps_hat brings too much. The fresh noise has the variance var, so eps_hat brings that much less.",
        ),
        "eta for eta^2": (
            "var = eta**2 *",
            "var = eta *",
            "var is eta beta_tilde. Noise enters with eta sqrt(beta_tilde), so the variance has eta^2.",
        ),
        "eps_hat kept where x_0_hat was clipped": (
            "eps_hat = eps_from_x_0(schedule, x_t, t, x_0_hat)",
            "pass",
            "eps_hat does not belong to the clipped x_0_hat. With clip compute it again, by eps_from_x_0.",
        ),
        "root of -1e-17": (
            ".clip(0)",
            "",
            "this is the root of a rounding error: 1 - alpha_bar_s - var may be -1e-17, and its root is NaN. Clip it "
            "at 0.",
        ),
        "var for its root": (
            "_add_noise(schedule, mean, var, s, noise)",
            "_add_noise(schedule, mean, var**2, s, noise)",
            "this is var. _add_noise takes the variance, and takes its root by itself.",
        ),
    },
    "guidance": {
        "scale counted from 0, as 1 + w": (
            "eps_u + scale *",
            "eps_c + scale *",
            "this is eps_c + scale (eps_c - eps_u), in which scale is w. Here scale is 1 + w: begin with eps_u.",
        ),
        "the other way": (
            "(eps_c - eps_u)",
            "(eps_u - eps_c)",
            "this leads away from the label. The difference is eps_c - eps_u.",
        ),
        "halves changed places": (
            "eps_u, eps_c = eps[:n], eps[n:]",
            "eps_c, eps_u = eps[:n], eps[n:]",
            "eps_u and eps_c have changed places: the rows without a label come first.",
        ),
        "the label for both": (
            "[no_label] * n + row_labels",
            "row_labels.tolist() + row_labels",
            "both halves have the label, so their difference is 0. The first N rows get no_label.",
        ),
        "class 0 for no label": (
            "[no_label] * n",
            "[0] * n",
            "the first half has class 0. No label is the label no_label, not 0.",
        ),
        "each prediction scaled": (
            "eps_u + scale * (eps_c - eps_u)",
            "(1 - scale) * eps_u + scale * eps_c",
            "eps_u + scale (eps_c - eps_u) is eps_u itself where the two agree: begin with it, and add the difference.",
        ),
        "scale times eps_c": (
            "eps_u + scale * (eps_c - eps_u)",
            "scale * eps_c",
            "scale multiplies eps_c alone.",
        ),
    },
    "unbroadcast": {
        "axes in front forgotten": (
            "g = g.sum(tuple(range(g.ndim - len(shape))))",
            "g = g",
            "the axes that broadcasting put in front are still there. Sum over the first g.ndim - len(shape).",
        ),
        "stretched axes forgotten": (
            "return g.sum(stretched, keepdims=True) if stretched else g",
            "return g",
            "the stretched axes are still there. Sum over those that have size 1 in `shape`.",
        ),
        "mean for sum": (
            "return g.sum(stretched",
            "return g.mean(stretched",
            "this is a mean. Each use counts in full, so the gradient is a sum.",
        ),
        "one of the uses only": (
            "g = g.sum(tuple(range(g.ndim - len(shape))))",
            "g = g[(0,) * (g.ndim - len(shape))]",
            "this is the gradient of one of the uses. Sum over the axes in front.",
        ),
        "axes lined up at the first": (
            "tuple(range(g.ndim - len(shape)))",
            "tuple(range(len(shape), g.ndim))",
            "the sum runs over the last axes. Broadcasting adds axes in front.",
        ),
        "stretched axes dropped": (
            "g.sum(stretched, keepdims=True)",
            "g.sum(stretched)",
            "the stretched axes are gone. keepdims=True leaves them at size 1.",
        ),
    },
    "backward_walk": {
        "the last gradient for their sum": (
            "dx = sum_of(grads[id(x)], dx, new)",
            "pass",
            "one of the two uses is lost. A place that is used twice gets the sum of both gradients.",
        ),
        "added into what another holds": (
            "dx = sum_of(grads[id(x)], dx, new)",
            "dx = grads[id(x)].__iadd__(dx)",
            "y = a + a: the walk has changed g, which its caller holds. Write total + dx, not total += dx.",
        ),
        "each path walked, not each node": (
            "if x is not None and id(x) not in places:",
            "if x is not None:",
            "12 nodes in a row, each the input of the next twice: the inputs were looked at 8,191 times. Visit each "
            "place once, not once for each path: remember those that were seen.",
        ),
        "outputs first": (
            "return sorted(places.values(), key",
            "return sorted(places.values(), reverse=True, key",
            "the output comes first. Each place comes after its inputs, so the output is last.",
        ),
        "a node before all that use it": (
            "return sorted(places.values(), key=lambda place: 0 if isinstance(place, Tensor) else place.number)",
            "return list(places.values())[::-1]",
            "a node comes before one of its inputs. Sort by the number, which is larger than those of the inputs.",
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
            "3,000 sums one after the other: the walk calls itself for each, and Python allows about 1,000 calls. Keep "
            "a list of the places still to be visited.",
        ),
        "gradients that nobody wants": (
            """        if x is not None:
            new""",
            """        if x is not None or (callable(dx) and dx() is None):
            new""",
            "a gradient was computed where none is wanted: call dx() only if the input is not None.",
        ),
        "the old gradient forgotten": (
            "g if place.grad is None else place.grad + g",
            "g",
            "the gradient that was in .grad is lost. backward adds to it.",
        ),
        "a leaf given g itself": (
            "elif isinstance(x, Tensor) and not new:",
            "elif False:",
            "with z = x + y, whose vjp returns g itself for both, x.grad and g are one array: whoever changes one "
            "changes the other. Copy it.",
        ),
    },
    "conv2d": {
        "not padded": (
            "(padding, padding), (padding, padding)",
            "(0, 0), (0, 0)",
            "the image is not padded.",
        ),
        "padded on one side only": (
            "(padding, padding), (padding, padding)",
            "(0, 2 * padding), (0, 2 * padding)",
            "the padding is on one side only. Each side gets `padding` zeros.",
        ),
        "stride forgotten": (
            "slice(k, k + stride * oh, stride), slice(l, l + stride * ow, stride)",
            "slice(k, k + oh), slice(l, l + ow)",
            "the stride is ignored: the filter moves by 1.",
        ),
        "end of the slice without stride": (
            "k + stride * oh, stride",
            "k + oh, stride",
            "the rows end too early. They are oh rows, each `stride` below the last: the slice ends at k + stride oh.",
        ),
        "kernel flipped": (
            "for rows, columns in taps]",
            "for rows, columns in list(taps)[::-1]]",
            "the filter is flipped. Here tap (k, l) meets pixel (i + k, j + l), with no flip.",
        ),
        "columns before rows": (
            "yield slice(k, k + stride * oh, stride), slice(l, l + stride * ow, stride)",
            "yield slice(l, l + stride * ow, stride), slice(k, k + stride * oh, stride)",
            "rows and columns of the filter have changed places.",
        ),
        "bias forgotten": (
            "@ filters + b",
            "@ filters",
            "the bias is missing.",
        ),
        "channels before taps": (
            "return xp.concatenate([padded[:, rows, columns] for rows, columns in taps], -1)",
            "return xp.stack([padded[:, rows, columns] for rows, columns in taps], -1).reshape(*output_shape(x.shape, "
            "w_shape, stride, padding)[:3], -1)",
            "the pixels of a window are in another order than w: tap by tap, and each tap with all its channels.",
        ),
    },
    "conv2d_backward": {
        "set where it should add": (
            "cols] += columns",
            "cols] = columns",
            "col2im keeps the last gradient of each pixel. A pixel that is in several windows gets their sum.",
        ),
        "frame not cut off": (
            "padding : padding + h, padding : padding + width]",
            ":h, :width]",
            "the wrong side of the padding is cut off: the image begins `padding` pixels from the border.",
        ),
        "kernel flipped": (
            "enumerate(_taps(x_shape, w_shape, stride, padding))",
            "enumerate([*_taps(x_shape, w_shape, stride, padding)][::-1])",
            "the filter is flipped: column block k belongs to tap number k.",
        ),
        "w not transposed": (
            "g @ filters.T",
            "g @ filters.reshape(g.shape[3], -1)",
            "w is not transposed: dX = g W^T, and filters.T has the rows that g needs.",
        ),
        "first image only": (
            "columns.reshape(-1, len(filters)).T @ g.reshape(-1, g.shape[3])",
            "columns[0].reshape(-1, len(filters)).T @ g[0].reshape(-1, g.shape[3])",
            "only the first image counts. dw is a sum over all images.",
        ),
        "mean for sum": (
            "g.sum((0, 1, 2))",
            "g.mean((0, 1, 2))",
            "this is a mean. db is a sum over all pixels of all images.",
        ),
        "each image's bias alone": (
            "g.sum((0, 1, 2))",
            "g[0].sum((0, 1))",
            "only the first image counts. db is a sum over all pixels of all images.",
        ),
    },
    "group_norm_backward": {
        "statistics taken for constants": (
            "rstd * (d - d.mean((1, 3), keepdims=True) - along)",
            "rstd * d",
            "mean and variance are taken for constants. They depend on x too, so two parts of d are removed.",
        ),
        "the mean forgotten": (
            "d - d.mean((1, 3), keepdims=True) - along",
            "d - along",
            "mean(d) is not removed: a shift of the whole group changes nothing, so dx must sum to 0.",
        ),
        "the scale's share forgotten": (
            " - along)",
            ")",
            "the part along x_hat is not removed: a scaling of the whole group changes nothing.",
        ),
        "gamma forgotten": (
            "(gamma * g)",
            "g",
            "gamma is missing. What x_hat receives is d = gamma g.",
        ),
        "means over pixels only": (
            "mean((1, 3),",
            "mean(1,",
            "the means run over the pixels only. A group also has several channels.",
        ),
        "x for x_hat in dgamma": (
            "(g * x_hat.reshape(shape))",
            "(g * x)",
            "this is made with x. gamma multiplies x_hat, so dgamma is the sum of g x_hat.",
        ),
        "rstd forgotten": (
            "dx = rstd * ",
            "dx = ",
            "the factor rstd is missing.",
        ),
    },
    "attention": {
        "not scaled": (
            "scale = 1 / math.sqrt(q.shape[-1])",
            "scale = 1",
            "the scores are not divided by sqrt(D).",
        ),
        "by D, not its root": (
            "scale = 1 / math.sqrt(q.shape[-1])",
            "scale = 1 / q.shape[-1]",
            "the scores are divided by D. It is sqrt(D).",
        ),
        "softmax over the queries": (
            "p = softmax_array(masked)",
            "p = softmax_array(xp.where(xp.isinf(masked), -1e9, masked).swapaxes(-1, -2)).swapaxes(-1, -2)",
            "the weights sum to 1 over the queries. For each query they sum to 1 over the keys.",
        ),
        "scale forgotten in the gradient": (
            "g @ v.swapaxes(-1, -2)) * scale",
            "g @ v.swapaxes(-1, -2))",
            "the factor 1/sqrt(D) is missing. The scores are q k^T / sqrt(D), so their gradient has it too.",
        ),
        "softmax taken for its exponential": (
            "softmax_gradient(p, g @ v.swapaxes(-1, -2))",
            "p * (g @ v.swapaxes(-1, -2))",
            "ds is not the softmax's gradient but p dp: use softmax_gradient(p, dp).",
        ),
        "hidden keys at 0": (
            "scores, -xp.inf)",
            "scores, 0)",
            "a hidden key has the score 0, and its weight is not 0. Its score is -xp.inf.",
        ),
        "not transposed": (
            "p.swapaxes(-1, -2) @ g",
            "p @ g",
            "the weights are not transposed: dv = p^T g.",
        ),
        "a float32 softmax": (
            "p = softmax_array(masked)",
            'p = softmax_array(masked).astype("float32").astype(masked.dtype)',
            "A number was rounded on the way: compute in the dtype of the inputs, or in float64, and cast last.",
        ),
    },
    "ema": {
        "no correction of the start": (
            " / (1 - beta1**k), v / (1 - beta2**k)",
            ", v",
            "m and v are not corrected for their start at 0: divide by 1 - beta1^k and 1 - beta2^k.",
        ),
        "one correction for all": (
            "v / (1 - beta2**k)",
            "v / (1 - beta1**k)",
            "m and v have the same correction. Each is divided by its own: 1 - beta1^k and 1 - beta2^k.",
        ),
        "not the square": (
            "(g * g)",
            "g",
            "v is the mean of g^2, not of g.",
        ),
        "betas changed places": (
            "beta1, beta2 = betas",
            "beta2, beta1 = betas",
            "this has beta2 in place of beta1.",
        ),
        "eps under the root": (
            "(xp.sqrt(v_hat) + eps)",
            "xp.sqrt(v_hat + eps)",
            "eps is under the root. It is added to the root.",
        ),
        "uphill": (
            "p.data - lr",
            "p.data + lr",
            "the step goes uphill: theta - lr m_hat/..., not +.",
        ),
        "the root forgotten": (
            "xp.sqrt(v_hat)",
            "v_hat",
            "the root of v_hat is missing.",
        ),
        "weights changed places": (
            "average + (1 - d) *",
            "average + d *",
            "d and 1 - d have changed places: the average keeps d of itself.",
        ),
        "rounded away from itself": (
            "average + (1 - d) * (p.data - average)",
            "d * average + (1 - d) * p.data",
            "theta - average is 0 for weights that stand still: average + (1 - d) (theta - average).",
        ),
        "no gradient, no step": (
            "g = 0 if p.grad is None else p.grad",
            """if (g := p.grad) is None:
        return""",
            "without a gradient nothing happened. It counts as the gradient 0, so m decays.",
        ),
        "a new array": (
            "p.data[...] =",
            "p.data =",
            "p.data is a new array. Others hold the old one, so write into it: p.data[...] = ...",
        ),
        "no warm-up": (
            "d = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))",
            "d = self.decay",
            "d is decay from the start. It warms up: (1 + n)/(10 + n) at update n, as long as that is less.",
        ),
        "counted too early": (
            "(1 + self.num_updates) / (10 +",
            "(2 + self.num_updates) / (11 +",
            "n is counted one too far: the first update has n = 0.",
        ),
        "the later of the two": (
            "d = min(",
            "d = max(",
            "d is above decay: it is the smaller of decay and (1 + n)/(10 + n).",
        ),
    },
    "time_code": {
        "cosines first": (
            "(math.sin, math.cos)",
            "(math.cos, math.sin)",
            "the cosines come first. All sines come first, then all cosines.",
        ),
        "in turns": (
            "for wave in (math.sin, math.cos) for i in range(half)",
            "for i in range(half) for wave in (math.sin, math.cos)",
            "sines and cosines take turns. All sines come first, then all cosines.",
        ),
        "frequencies rise": (
            "** (-i / half)",
            "** (i / half)",
            "the frequencies rise. They fall from 1: f_i = 10,000^(-i/half).",
        ),
        "the other convention, h - 1": (
            "** (-i / half)",
            "** (-i / max(half - 1, 1))",
            "the last frequency is 1/10,000. With i/half it is not reached, and other code divides by half - 1.",
        ),
        "angles in float32": (
            "wave(k * FREQUENCY_RANGE ** (-i / half))",
            'wave(k * float(asarray(FREQUENCY_RANGE ** (-i / half), "float32")))',
            "Compute the angle with Python's floats, which are float64. float32 keeps 7 digits of it.",
        ),
        "twice as fast": (
            "** (-i / half)",
            "** (-2 * i / half)",
            "the frequencies fall twice as fast. Where the paper writes 2i/d, d is 2 half.",
        ),
        "a tuple of the sines alone": (
            "for wave in (math.sin, math.cos)",
            "for wave in (math.sin,)",
            "the code has the shape (3,), and should have (6,).",
        ),
    },
}
