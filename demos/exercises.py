"""The exercises as a table: what each takes out of the package, and the laws that say when it is back.

demos/exercise.py is the program; this file only says what it works on.  Laws are tests of our own suite, by their place
under tests/: what a reader's answer is held to is what the package itself is held to.
"""

from typing import NamedTuple


class Cut(NamedTuple):
    """What the reader writes: of `function` in `file`, the statements from the one that begins with `first` to the one
    that begins with `last`; where these are empty, from the beginning and to the end.  The docstring always stays.
    """

    file: str  # in the package
    function: str  # with what it stands in: Schedule.linear
    turn: str  # what to write
    first: str = ""
    last: str = ""


class Exercise(NamedTuple):
    name: str
    title: str
    minutes: int
    teaches: str
    task: str
    cuts: tuple[Cut, ...]
    laws: tuple[str, ...]
    hints: tuple[str, str, str]  # the last is nearly the answer
    read_next: str
    question: str  # that can be answered now


def _laws(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}::test_{name}" for name in names)


EXERCISES = (
    Exercise(
        name="closed_form",
        title="The closed form",
        minutes=10,
        teaches="why the forward process needs no loop and no learning: x_t is one weighted sum of x_0 and noise",
        task="Write q_sample: x_t from x_0, t and eps. The tables schedule.alpha_bar and schedule.one_minus_alpha_bar "
        "are indexed by t; per_row(coef, x) turns one number a row into what multiplies the rows of x.",
        cuts=(
            Cut("diffusion/gaussian.py", "q_sample", "x_t from x_0, t and eps (Ho et al. 2020, eq. 4)", "signal_std"),
        ),
        laws=_laws(
            "diffusion/test_gaussian.py",
            "the_markov_chain_composes_to_the_closed_form",
            "the_first_steps_compose_exactly",
            "unit_variance_is_kept",
            "at_t_0_nothing_happens",
            "a_jump_from_the_data_is_q_sample",
            "each_row_has_its_own_time",
            "float32_coefficients_are_float64_coefficients_rounded_once",
        ),
        hints=(
            "Two steps of eq. 2 after each other: what becomes of x_0's factor, and of the two noises' variances?",
            "alpha_bar_t is a variance: of data of variance 1, that much is left. What multiplies x_0 is its root.",
            "per_row(alpha_bar[t] ** 0.5, x_0) * x_0, and the same of eps with one_minus_alpha_bar.",
        ),
        read_next="tinydiff/diffusion/gaussian.py, q_x_t_given_x_s: the same for a jump from any s",
        question="Which two numbers say all about how much of x_0 is left in x_t, and why do their squares make 1?",
    ),
    Exercise(
        name="posterior",
        title="The posterior",
        minutes=20,
        teaches="what the ideal reverse step is: Bayes' rule for two Gaussians, and why beta_tilde is less than beta",
        task="Write the mean of q(x_s | x_t, x_0) and its variance, beta_tilde, which stands in schedule.py. "
        "schedule.beta_t_given_s(t, s) and schedule.alpha_t_given_s(t, s) are those of the jump from s to t.",
        cuts=(
            Cut("diffusion/schedule.py", "Schedule.beta_tilde", "the variance of q(x_s | x_t, x_0) (eq. 7)", "return"),
            Cut(
                "diffusion/gaussian.py",
                "q_x_s_given_x_t_x_0",
                "mean and variance of q(x_s | x_t, x_0) (eq. 6 and 7)",
                "one_minus_alpha_bar",
            ),
        ),
        laws=_laws("diffusion/test_schedule.py", "beta_tilde_is_beta_seen_from_the_data")
        + _laws(
            "diffusion/test_gaussian.py",
            "at_t_1_the_posterior_is_exactly_1_0_0",
            "the_posterior_is_bayes_rule_for_every_pair_of_the_first_steps",
            "the_posterior_is_bayes_rule",
            "the_posterior_leads_back_to_the_marginal",
        ),
        hints=(
            "Prior x_s ~ N(sqrt(alpha_bar_s) x_0, 1 - alpha_bar_s), likelihood x_t ~ N(sqrt(alpha_{t|s}) x_s, "
            "beta_{t|s}): precisions add.",
            "alpha_{t|s} (1 - alpha_bar_s) + beta_{t|s} = 1 - alpha_bar_t, which is what everything is divided by.",
            "The docstring's three lines are the answer: beta_{t|s} goes with x_0, 1 - alpha_bar_s with x_t, and both "
            "together in the variance.",
        ),
        read_next="tinydiff/diffusion/samplers.py, ddpm_step: the posterior with x_0_hat in place of x_0",
        question="At s = 0 the three coefficients are 1, 0 and 0. What does that say of the last step of sampling?",
    ),
    Exercise(
        name="schedules",
        title="Linear and cosine schedule",
        minutes=15,
        teaches="how fast the data fade, why beta has to be scaled with T, and what the cosine changes at both ends",
        task="Write Schedule.linear and Schedule.cosine. _ramp(T) is u = (t - 1)/(T - 1) for t = 1..T; the class "
        "takes beta_1..beta_T and makes all its tables from them.",
        cuts=(
            Cut("diffusion/schedule.py", "Schedule.linear", "the schedule whose beta grows evenly"),
            Cut("diffusion/schedule.py", "Schedule.cosine", "the schedule whose alpha_bar follows a squared cosine"),
        ),
        laws=(
            "diffusion/test_schedule.py::test_linear_at_its_default_is_the_schedule_of_the_paper",
            "diffusion/test_schedule.py::test_each_beta_schedule_is_its_published_formula[linear]",
            "diffusion/test_schedule.py::test_cosine_is_its_published_formula",
            "diffusion/test_schedule.py::test_every_named_schedule_ends_in_noise_at_any_length",
        ),
        hints=(
            "Linear: first the default, T = 1000, where beta runs from _BETA_FIRST to _BETA_LAST. Then: ten times "
            "fewer steps have to add ten times more noise each.",
            "Cosine: compute f at t = 0..T; alpha_bar_t/alpha_bar_{t-1} is f(t)/f(t-1), and 1 minus that is beta_t.",
            "np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2, and np.minimum(..., 0.999) of 1 - f[1:] "
            "/ f[:-1].",
        ),
        read_next="python demos/forward_process.py, and its picture noising.png: all schedules on one digit",
        question="Why is beta from 1e-4 to 0.02 in 50 steps a mistake, although every beta is as in the paper?",
    ),
    Exercise(
        name="training_loss",
        title="The training loss",
        minutes=15,
        teaches="why a noise that we drew ourselves is a perfect target: one row of a batch, and what is averaged",
        task="Write algorithm 1: in draw_batch t, then for (block, x_0, eps, digits) in _draw_blocks(dataset, indices, "
        "rng, name, rows) what belongs in those rows of x_t, y and labels; and in noise_prediction_losses one number "
        "for each example. target.of(schedule, x_0, t, eps) is eps itself unless the run says otherwise. "
        "model.forward(x_t, t, labels, rng=rng) is eps_hat, a Tensor; ops.mean takes axis=.",
        cuts=(
            Cut("train.py", "draw_batch", "t, one for each of n images", "t = rng", "t = rng"),
            Cut("train.py", "draw_batch", "x_t, y and labels of each block", "for block", "for block"),
            Cut("train.py", "noise_prediction_losses", "one loss for each example (Ho et al. 2020, eq. 14)"),
        ),
        laws=_laws(
            "test_train.py",
            "t_may_be_any_of_1_to_T_and_nothing_else",
            "batch_obeys_the_closed_form",
            "a_batch_holds_its_target_and_its_weight",
            "batch_is_a_pure_function_of_seed_and_step",
            "loss_is_the_mean_square_over_pixels",
            "a_weight_multiplies_its_examples_loss",
        ),
        hints=(
            "rng.integers(low, high, size) never gives high, and t = 0 is the data itself, of which there is nothing "
            "to learn.",
            "x_t[block] is q_sample(schedule, x_0, t[block], eps), with the very eps that becomes the target y[block].",
            'ops.mean(error * error, axis=(1, 2, 3)), and times asarray(batch["weight"]) where the batch has one; '
            'batch.get("labels") is None where there are none.',
        ),
        read_next="tinydiff/train.py, Training.advance: what becomes of the losses",
        question="The network never sees x_0. How can the loss be exact all the same, and what would fit it best?",
    ),
    Exercise(
        name="ddpm_step",
        title="The DDPM step",
        minutes=15,
        teaches="how one denoising step is made: guess x_0, take the posterior at the guess, add fresh noise",
        task="Write ddpm_step, and _add_noise, which DDIM uses too. _x_0_hat(schedule, x_t, eps_hat, t, clip) guesses "
        "x_0. In _add_noise s may be one time or one for each row; where s = 0 no noise may enter, not even NaN.",
        cuts=(
            Cut("diffusion/samplers.py", "ddpm_step", "x_s and x_0_hat (Ho et al. 2020, algorithm 2)"),
            Cut("diffusion/samplers.py", "_add_noise", "mean + sqrt(var) noise, and mean alone where s = 0"),
        ),
        laws=_laws(
            "diffusion/test_samplers.py",
            "ddpm_with_the_true_noise_is_the_posterior",
            "ddpm_is_the_ancestral_step_of_the_paper",
            "noise_enters_with_the_standard_deviation_of_the_variance",
            "the_default_variance_is_beta_tilde",
            "no_noise_enters_the_data",
            "clip_acts_on_x_0_hat_alone",
            "a_step_takes_a_time_for_each_row",
            "the_output_of_the_ideal_denoiser_is_the_known_number[10-ddpm]",
        ),
        hints=(
            "q_x_s_given_x_t_x_0 gives the mean; which variance goes with it is the caller's choice: "
            "variance(schedule, t, s).",
            "The variance times (s > 0) is what may enter, for one time or for rows. If nothing is left of it, return "
            "the mean before you touch the noise: 0 times NaN is NaN.",
            "host_integers('s', s, 0, schedule.T) makes s an array; mean + per_row(var**0.5, mean) * noise.",
        ),
        read_next="tinydiff/diffusion/samplers.py, sample: the loop around the step, a generator of four lines",
        question="What does eps_hat change in this step, and what would the step be if x_0 were known?",
    ),
    Exercise(
        name="ddim_step",
        title="The DDIM step",
        minutes=15,
        teaches="why sampling can skip steps: the same noise carried to another level, and eta between DDIM and DDPM",
        task="Write what is left of ddim_step after x_0_hat is known: with clip, the eps that goes with the clipped "
        "x_0_hat; then x_s of eq. 12. _add_noise(schedule, mean, var, s, noise) does the last term.",
        cuts=(Cut("diffusion/samplers.py", "ddim_step", "x_s of Song et al. 2021, eq. 12 and 16", "if clip:"),),
        laws=_laws(
            "diffusion/test_samplers.py",
            "ddim_with_oracle_noise_walks_the_closed_form",
            "every_eta_keeps_the_marginal",
            "ddim_at_eta_1_is_ddpm",
            "eta_0_draws_nothing",
            "eta_1_never_takes_the_root_of_a_rounding_error",
            "clip_acts_on_x_0_hat_alone",
            "the_output_of_the_ideal_denoiser_is_the_known_number[10-ddim]",
        ),
        hints=(
            "At eta = 0 it is q_sample at s, with x_0_hat for x_0 and eps_hat for eps: nothing else.",
            "Noise of variance var is added in the end, so eps_hat has to bring that much less: 1 - alpha_bar_s is "
            "what both come to.",
            "eps_std = (schedule.one_minus_alpha_bar[s] - var).clip(0) ** 0.5 with var = eta**2 * "
            "schedule.beta_tilde(t, s): rounding may leave -1e-17 under the root.",
        ),
        read_next="tinydiff/diffusion/samplers.py, dpm_solver_2m: the same with a guess at where x_0_hat is going",
        question="Which of DDPM and DDIM draws the same digit from one x_T every time, and which line makes it so?",
    ),
    Exercise(
        name="guidance",
        title="Classifier-free guidance",
        minutes=10,
        teaches="how a label or a prompt steers each step: away from what the network says without it",
        task="Write the heart of classifier_free: one call of the model on 2N rows, N without a label and then N "
        "with, and the two answers put together. no_label is the label that means none; row_labels has one for each "
        "row.",
        cuts=(
            Cut(
                "diffusion/guidance.py",
                "classifier_free.eps_fn",
                "eps_u and eps_c from one call, and eps_hat (Ho & Salimans 2022, eq. 6)",
                "both =",
                "eps_hat =",
            ),
        ),
        laws=_laws(
            "diffusion/test_guidance.py",
            "guidance_is_affine_in_scale",
            "both_halves_come_from_one_call",
            "no_label_is_not_led_anywhere",
            "a_tensor_is_unwrapped_and_keeps_its_dtype",
            "guidance_is_an_eps_fn_for_every_sampler",
            "guided_eps_is_the_score_of_the_tilted_density",
        ),
        hints=(
            "xp.concatenate([x_t, x_t]) makes 2N rows; labels are a list of 2N integers, no_label first.",
            "asarray(model(...)) is a plain array, whatever the model returns; its first n rows are eps_u.",
            "eps_u + scale * (eps_c - eps_u): 0 is unconditional, 1 conditional. Papers that write 1 + w count from 0.",
        ),
        read_next="tinydiff/diffusion/guidance.py, classifier_guided: the same difference from a classifier's gradient",
        question="Why does a scale above 1 give digits that read better and vary less?",
    ),
    Exercise(
        name="unbroadcast",
        title="Broadcasting undone",
        minutes=10,
        teaches="what the gradient of a broadcast is: a value that was used many times gets the sum of all its uses",
        task="Write unbroadcast: g has the shape of the result; return it summed to `shape`, the shape that was "
        "broadcast to it. Axes may have been added in front, and axes of size 1 may have been stretched.",
        cuts=(Cut("autograd.py", "unbroadcast", "g summed over every axis that broadcasting made"),),
        laws=(
            "test_autograd.py::test_unbroadcast_is_the_adjoint_of_broadcasting",
            "ops/test_every_op.py::test_the_gradient_of_a_linear_op_is_its_adjoint[add]",
            "ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[mul]",
            "ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[matmul]",
        ),
        hints=(
            "Broadcasting lines shapes up at their last axis: g.ndim - len(shape) axes were added in front.",
            "Sum over these first. What is left has as many axes as `shape`: which of them are 1 there and more in g?",
            "g.sum(axes, keepdims=True) for the stretched ones: they stay as axes of size 1. Of no axes there is "
            "nothing to sum: g.sum(()) is g.",
        ),
        read_next="tinydiff/autograd.py, pointwise: where it is called for every op that broadcasts",
        question="A bias (C,) is added to maps (N, H, W, C). What is its gradient, and why is it large?",
    ),
    Exercise(
        name="backward_walk",
        title="The walk backwards",
        minutes=30,
        teaches="what backpropagation is: every node once, after all that used it, with the sum of what they say",
        task="Write _inputs_first, the order, and the loop in Tensor.backward. A place in the graph is a leaf, which "
        "is a Tensor, or a node with .inputs (None where no gradient goes) and .vjp(g), one entry an input: an array, "
        "or a function of no arguments that returns one. `places` has the order, the output last, and g is its "
        "gradient. A leaf takes what it gets with place._add_grad(g, False): False says that others may hold g too. "
        "The original adds in place where it may, and is longer for it; yours need not be.",
        cuts=(
            Cut("autograd.py", "Tensor.backward", "walk the places, the output first, and hand g on", "grads, ours"),
            Cut("autograd.py", "_inputs_first", "a list of all places below root, each after its inputs, no recursion"),
        ),
        laws=_laws(
            "test_autograd.py",
            "one_tensor_as_both_inputs_counts_twice",
            "a_node_waits_for_all_that_use_it",
            "a_shared_node_passes_the_sum_of_its_gradients_once",
            "random_graphs_agree_with_forward_mode",
            "backward_adds_to_what_is_there",
            "gradients_are_nobody_elses_array",
            "only_leaves_that_require_one_get_a_gradient",
            "gradients_that_nobody_wants_are_not_computed",
            "five_thousand_ops_deep_is_no_recursion",
        ),
        hints=(
            "The order: depth first, a place is written down when all of its inputs are. Keep a stack of (place, an "
            "iterator over its inputs), and a set of ids of what was seen.",
            "The loop: a dictionary from id(place) to the sum of gradients so far, at first {id(places[-1]): g}. Take "
            "places from the end; call vjp once for each node; skip inputs that are None.",
            "dx = dx() if callable(dx) else dx; then grads[id(x)] = grads[id(x)] + dx if id(x) in grads else dx. With "
            "+= you would write into an array that somebody else holds.",
        ),
        read_next="tinydiff/autograd.py, op: where the nodes come from that you have just walked",
        question="60 doublings y + y are 2^60 paths. Why does the walk take 60 steps and not 2^60?",
    ),
    Exercise(
        name="conv2d",
        title="Convolution forward",
        minutes=20,
        teaches="that a convolution is one matrix product, once each pixel's window is laid out as a row",
        task="Write _columns (im2col): the window of each output pixel as a row, x padded with zeros; and in "
        "_correlate the product of these rows with w. A double loop over the taps (k, l) of the kernel is enough. "
        "This is the way of every convolution but those of 3x3 with 16 channels and more, which ops/winograd.py does "
        "by another one.",
        cuts=(
            Cut(
                "ops/conv.py",
                "_columns",
                "rows (N OH OW, KH KW C): tap by tap, each with all its channels",
                "padded = xp.zeros",
            ),
            Cut(
                "ops/conv.py",
                "_correlate",
                "rows times w into y, then _add to y unless b is None",
                "for part",
                "for",
            ),
        ),
        laws=(
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_kernel_stride_and_padding",
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_size",
            "ops/test_conv.py::test_more_channels_than_256_are_compared_by_value",
        ),
        hints=(
            "Of the padded map, tap (k, l) of all windows is padded[:, k : k + stride * oh : stride, l : l + stride * "
            "ow : stride]: (N, OH, OW, C).",
            "Put them at windows[:, :, :, k, l] of an array (n, oh, ow, kh, kw, c), and reshape that. w.reshape(-1, "
            "O) has its rows in the same order: KH, KW, C.",
            "y.reshape(-1, O)[...] = _columns(x, w, stride, padding) @ w.reshape(-1, O). The original does that for a "
            "few images at a time, so that the rows stay in cache.",
        ),
        read_next="tinydiff/ops/winograd.py: the same numbers with a quarter of the multiplications",
        question="How many times is each pixel copied in a 3x3 convolution of stride 1, and what does that buy?",
    ),
    Exercise(
        name="conv2d_backward",
        title="Convolution backward",
        minutes=25,
        teaches="that a convolution's gradients are its product turned round, and that scatter is gather's adjoint",
        task="Write _filter_gradient, the rows of _columns transposed times g; _input_gradient, g times w transposed; "
        "and _add_columns, which puts the rows that come out back on the pixels they were copied from. `one` is for a "
        "GPU: hand it on to _columns or leave it.",
        cuts=(
            Cut("ops/conv.py", "_input_gradient", "dx of `shape`, by _add_columns"),
            Cut("ops/conv.py", "_filter_gradient", "dw as (KH KW C, O), the sum over all pixels of all images"),
            Cut("ops/conv.py", "_add_columns", "a map of `shape`: each row added back where it came from", "padded ="),
        ),
        laws=(
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_kernel_stride_and_padding",
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_size",
            "ops/test_every_op.py::test_the_gradient_of_a_linear_op_is_its_adjoint[conv2d]",
        ),
        hints=(
            "y = rows @ w gives dw = rows.T @ g and drows = g @ w.T, all of them as matrices: g.reshape(-1, O).",
            "A pixel lies in up to KH KW windows, and its gradient is the sum over all of them: += into a padded map, "
            "tap by tap, and the frame cut off in the end.",
            "padded[:, k : k + stride * oh : stride, l : l + stride * ow : stride] += columns[:, :, :, k, l], with "
            "columns reshaped to (n, oh, ow, kh, kw, c).",
        ),
        read_next="tinydiff/ops/fused.py: what is not kept for this pass, but made again in it",
        question="Why must _add_columns add, where _columns only copied?",
    ),
    Exercise(
        name="group_norm_backward",
        title="Group norm backward",
        minutes=30,
        teaches="what a normalisation hides from its gradient: level and scale, so two means are taken out of it",
        task="Write GroupNorm.backward. With x_hat = (x - mean) rstd and means over a group (its channels, all "
        "pixels): dx = rstd (gamma dz - mean(gamma dz) - x_hat mean(gamma dz x_hat)); dgamma and dbeta are sums over "
        "an image's pixels, (n, C). Write to dx in place, dx[...] = ..., and to self.dgamma[part] and "
        "self.dbeta[part]. You have self.x[part], self.gamma, self.mean[part] and self.rstd[part], (n, C); a product "
        "of (n, C) with self.group_mean turns sums over an image's pixels into means over a group.",
        cuts=(Cut("ops/norm.py", "GroupNorm.backward", "dx in place, self.dgamma[part] and self.dbeta[part]"),),
        laws=(
            "ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[group_norm]",
            "ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[group_norm_silu]",
            "ops/test_norm.py::test_group_norm_forgets_each_groups_level_and_scale",
            "ops/test_norm.py::test_a_constant_group_becomes_its_shift",
        ),
        hints=(
            "Reshape x, dz and dx to (n, pixels, C): then mean[:, None] and rstd[:, None] fit, and a sum over axis 1 "
            "is one over pixels.",
            "dbeta = dz.sum(1), dgamma = (dz * x_hat).sum(1): of these two come both means.",
            "level = (dbeta * self.gamma) @ self.group_mean, along = (dgamma * self.gamma) @ self.group_mean, and dx "
            "= rstd (gamma dz - level - x_hat along), each with [:, None].",
        ),
        read_next="tinydiff/ops/norm.py, GroupNorm.forward and again: what is kept, and what is made again",
        question="A cotangent of ones gives dx = 0 here. Why, and why does no test of ours use one?",
    ),
    Exercise(
        name="attention",
        title="Attention",
        minutes=20,
        teaches="how a pixel or a word looks at all others: a softmax of products, and the two gradients through it",
        task="Write attention, forward and vjp. softmax_array(scores, -1) and softmax_gradient(p, dp, -1) are there; "
        "where mask is False a score is -xp.inf. vjp(g) returns (dq, dk, dv).",
        cuts=(Cut("ops/attention.py", "attention", "p, and y = p v with its vjp", "scale ="),),
        laws=_laws(
            "ops/test_attention.py",
            "attention_is_its_definition",
            "weights_are_a_partition_of_one",
            "the_order_of_the_keys_does_not_matter",
            "a_mask_leaves_the_other_keys_as_if_they_were_all",
            "a_hidden_key_has_no_influence_at_all",
            "scores_of_ten_thousand_pick_one_value",
        )
        + ("ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[attention]",),
        hints=(
            "k.swapaxes(-1, -2) is k^T for any number of leading axes. Scale q rather than the scores: it is smaller.",
            "y = p v gives dp = g v^T and dv = p^T g; ds = softmax_gradient(p, dp, -1).",
            "The scale belongs to the scores, so once more to ds; then dq = ds k and dk = ds^T q.",
        ),
        read_next="tinydiff/nn/layers.py, Attention: heads, and the map around it",
        question="Why is the score divided by sqrt(D), and what would the softmax do without it?",
    ),
    Exercise(
        name="ema",
        title="The average of the weights",
        minutes=10,
        teaches="why samples come from averaged weights, and why the average has to forget its random start",
        task="Write EMA.update: self.data is the average, self.flat.data the weights, both one long array; "
        "self.num_updates counts from 0. Weights that stand still have to stay their own average to the last bit.",
        cuts=(Cut("optim.py", "EMA.update", "the average's next value, and the count"),),
        laws=_laws(
            "test_optim.py",
            "the_average_is_a_weighted_sum_of_all_values_so_far",
            "the_average_of_what_stands_still_is_itself",
            "the_average_is_of_parameters_only",
            "adam_and_average_do_not_depend_on_the_size_of_a_piece",
        ),
        hints=(
            "d = min(decay, (1 + n) / (10 + n)) with n before it is counted up: 1/10 in the first update.",
            "d a + (1 - d) theta = a + (1 - d)(theta - a): which of the two changes nothing where theta = a?",
            "self.data += (1 - d) * (self.flat.data - self.data). The original goes piece by piece, to stay in cache.",
        ),
        read_next="tinydiff/optim.py, Adam: two more averages, each divided by what its start left out",
        question="With decay 0.999 and no warm-up, how much of the random start is left after 1,000 steps?",
    ),
    Exercise(
        name="time_code",
        title="The code of the time",
        minutes=10,
        teaches="how a network is told t: as clock hands from fast to slow, so that near times look alike",
        task="Write _time_code, the row of time k: 2 half numbers, first all sines, then all cosines, in Python's "
        "floats, which are float64. time_code puts the rows together and casts them in the end.",
        cuts=(Cut("nn/unet.py", "_time_code", "sines and cosines of k = t times the frequencies f_i"),),
        laws=_laws(
            "nn/test_unet.py",
            "the_time_code_holds_sines_then_cosines",
            "the_time_code_is_rounded_last",
            "no_two_times_have_one_code",
        ),
        hints=(
            "f_i = LONGEST_PERIOD ** (-i / half), i = 0..half - 1: the fastest hand turns once in 2 pi steps.",
            "Only math is there, and it will do: a list or a tuple of numbers.",
            "[math.sin(k * f) for f in frequencies] + [math.cos(k * f) for f in frequencies].",
        ),
        read_next="tinydiff/nn/unet.py, UNet._time_and_label: what becomes of the code",
        question="Why not give the network t/T as one number?",
    ),
)
