"""A right answer to each exercise that is not the original: what a reader may write, in the order of the cuts."""

RIGHT = {
    "closed_form": [
        """
        variances = schedule.alpha_bar[t], schedule.one_minus_alpha_bar[t]
        terms = [per_row(variance**0.5, part) * part for variance, part in zip(variances, (x_0, eps))]
        return terms[0] + terms[1]
        """,
    ],
    "posterior": [
        "return self.one_minus_alpha_bar[s] * self.beta_t_given_s(t, s) / self.one_minus_alpha_bar[t]",
        """
        beta, below = schedule.beta_t_given_s(t, s), schedule.one_minus_alpha_bar[t]
        of_x_0 = schedule.alpha_bar[s] ** 0.5 * beta / below
        of_x_t = schedule.alpha_t_given_s(t, s) ** 0.5 * schedule.one_minus_alpha_bar[s] / below
        return per_row(of_x_0, x_t) * x_0 + per_row(of_x_t, x_t) * x_t, per_row(schedule.beta_tilde(t, s), x_t)
        """,
    ],
    "schedules": [
        """
        first, last = _BETA_FIRST * _T_REF / T, _BETA_LAST * _T_REF / T
        return cls((1 - _ramp(T)) * first + _ramp(T) * last)
        """,
        """
        angle = (np.arange(_check_T(T) + 1) / T + 0.008) / 1.008 * np.pi / 2
        alpha_bar = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
        beta = [min(1 - alpha_bar[t] / alpha_bar[t - 1], 0.999) for t in range(1, T + 1)]
        return cls(beta)
        """,
    ],
    "training_loss": [
        "t = rng.integers(schedule.T, size=n) + 1",
        """
        eps = rng.standard_normal(x_0.shape, dtype="float32")
        batch = dict(x_t=q_sample(schedule, x_0, t, eps), target=eps, t=t)
        """,
        """
        eps_hat = model(batch["x_t"], batch["t"], batch.get("labels"))
        difference = asarray(batch["target"]) - eps_hat
        losses = ops.mean(ops.mean(ops.mean(difference * difference, axis=3), axis=2), axis=1)
        """,
    ],
    "ddpm_step": [
        """
        x_0_hat = predicted_x_0(schedule, x_t, eps_hat, t, clip)
        mean = q_x_s_given_x_t_x_0(schedule, x_t, x_0_hat, t, s)[0]
        var = to_numpy(variance(schedule, t, s))
        return _add_noise(schedule, mean, var, s, noise), x_0_hat
        """,
        """
        require(var.shape in ((), mean.shape[:1], mean.shape), "a variance must be (), (N,) or like x_t", var.shape)
        require(((var >= 0) & (var < xp.inf)).all(), "the variance must be finite and not negative", var)
        s = host_integers("s", s, 0, schedule.T)
        std = per_row(var**0.5, mean) * per_row((s > 0) + 0.0, mean)
        if not std.any():
            return mean
        require(noise is not None, f"noise is needed for a random step to s = {s}", noise)
        check_alike("noise", noise, "x_t", mean)
        return mean + std * noise
        """,
    ],
    "ddim_step": [
        """
        var = eta**2 * schedule.beta_tilde(t, s)
        if clip:
            eps_hat = eps_from_x_0(schedule, x_t, t, x_0_hat)
        eps_var = schedule.one_minus_alpha_bar[s] - var
        eps_var = eps_var * (eps_var > 0)
        mean = per_row(schedule.alpha_bar[s] ** 0.5, x_t) * x_0_hat + per_row(eps_var**0.5, x_t) * eps_hat
        return _add_noise(schedule, mean, var, s, noise), x_0_hat
        """,
    ],
    "guidance": [
        """
        twice = xp.concatenate([x_t, x_t])
        both = host_integers("labels", [*[no_label] * n, *row_labels.tolist()], 0, no_label)
        eps = asarray(model(twice, t, both))
        check_alike("model(x_t, t, labels)", eps, "x_t", twice)
        eps_u, eps_c = eps[:n], eps[n:]
        eps_hat = eps_u - scale * (eps_u - eps_c)
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
        """,
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
        """,
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
        """,
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
        """,
    ],
}
