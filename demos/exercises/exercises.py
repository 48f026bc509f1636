"""The exercises as a table: what each takes out of the package, and the laws that show when it is back.

demos/exercises/exercise.py is the program; this file only contains its texts.  A law is a test of our own suite, named
by its place under tests/.  So a reader's answer has to pass what the package itself has to pass.
"""

from typing import NamedTuple


class Cut(NamedTuple):
    """What the reader writes: statements of `function` in `file`.

    The cut goes from the statement that begins with `first` to the statement that begins with `last`.  An empty `first`
    stands for the first statement, an empty `last` for the last one.  The docstring always stays.
    """

    file: str  # in the package
    function: str  # with the class or function around it: Schedule.linear
    turn: str  # what to write
    first: str = ""
    last: str = ""


class Formula(NamedTuple):
    """A text of a docstring that gives an exercise away, and what the copy has in its place."""

    file: str
    text: str
    instead: str


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
    question: str  # for after the exercise; answers.py has an answer
    scene: str = "draw"  # what `see` shows, see drawing.py
    sampler: str = "ddpm_step"  # with which `see` draws
    formulas: tuple[Formula, ...] = ()


def _laws(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}::test_{name}" for name in names)


EXERCISES = (
    Exercise(
        name="closed_form",
        title="The closed form",
        minutes=10,
        teaches="why the forward process needs no loop and no learning: x_t is a weighted sum of x_0 and noise",
        task="Write q_sample: compute x_t from x_0, t and eps. schedule.alpha_bar and schedule.one_minus_alpha_bar are "
        "tables with one entry for each time. per_row(coef, x) turns one number for each row into an array that "
        "multiplies the rows of x.",
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
            "Apply eq. 2 twice. What does the factor of x_0 become? What is the sum of the two noises' variances?",
            "alpha_bar_t is a variance: the share of x_0's variance that is left in x_t. The factor of x_0 is its "
            "square root.",
            "The first term is per_row(schedule.alpha_bar[t] ** 0.5, x_0) * x_0. The second term has the same form, "
            "with one_minus_alpha_bar and eps.",
        ),
        read_next="tinydiff/diffusion/gaussian.py, q_x_t_given_x_s: the same for a jump from any s",
        question="Two numbers tell how much of x_0 and how much noise is in x_t. Why do their squares add up to 1?",
        scene="noise",
        formulas=(
            Formula(
                "diffusion/gaussian.py",
                "        x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps\n",
                "        x_t = your turn: eq. 4 of the paper\n",
            ),
        ),
    ),
    Exercise(
        name="posterior",
        title="The posterior",
        minutes=20,
        teaches="what the ideal reverse step is: Bayes' rule for two Gaussians, and why beta_tilde is less than beta",
        task="Write the mean of q(x_s | x_t, x_0) in gaussian.py, and its variance beta_tilde in schedule.py. The "
        "paper has s = t - 1; here s is any earlier time. schedule.alpha_t_given_s(t, s) and "
        "schedule.beta_t_given_s(t, s) are alpha and beta of the jump from s to t.",
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
            "The prior is x_s ~ N(sqrt(alpha_bar_s) x_0, 1 - alpha_bar_s). The likelihood is x_t ~ N(sqrt(alpha_{t|s}) "
            "x_s, beta_{t|s}). Multiply the two densities: the precisions add up.",
            "Everything is divided by alpha_{t|s} (1 - alpha_bar_s) + beta_{t|s}. This sum is 1 - alpha_bar_t.",
            "mean = sqrt(alpha_bar_s) beta_{t|s}/(1 - alpha_bar_t) x_0 + sqrt(alpha_{t|s}) (1 - alpha_bar_s)/(1 - "
            "alpha_bar_t) x_t, and beta_tilde = (1 - alpha_bar_s)/(1 - alpha_bar_t) beta_{t|s}. Take 1 - alpha_bar "
            "from schedule.one_minus_alpha_bar, which keeps its digits.",
        ),
        read_next="tinydiff/diffusion/samplers.py, ddpm_step: the posterior with x_0_hat in place of x_0",
        question="At s = 0 the three coefficients are 1, 0 and 0. What does the last step of sampling return?",
        formulas=(
            Formula(
                "diffusion/gaussian.py",
                "        mean = sqrt(alpha_bar_s) beta_{t|s}/(1 - alpha_bar_t) x_0\n"
                "             + sqrt(alpha_{t|s}) (1 - alpha_bar_s)/(1 - alpha_bar_t) x_t\n"
                "        var  = beta_tilde_{t|s} = (1 - alpha_bar_s)/(1 - alpha_bar_t) beta_{t|s}\n",
                "        mean and var: your turn, eq. 6 and 7 of the paper, with s in place of t - 1\n",
            ),
            Formula(
                "diffusion/schedule.py",
                "            beta_tilde_{t|s} = (1 - alpha_bar_s)/(1 - alpha_bar_t) beta_{t|s}\n",
                "            beta_tilde_{t|s} = your turn: eq. 7 of the paper, with s in place of t - 1\n",
            ),
        ),
    ),
    Exercise(
        name="schedules",
        title="Linear and cosine schedule",
        minutes=15,
        teaches="how fast the data fade, why beta has to be scaled with T, and what the cosine changes at both ends",
        task="Write Schedule.linear and Schedule.cosine. _ramp(T) is u = (t - 1)/(T - 1) for t = 1..T. cls(beta) takes "
        "beta_1..beta_T and computes all tables from them.",
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
            "Linear: at T = 1000 beta runs from _BETA_FIRST to _BETA_LAST. With ten times fewer steps, each step has "
            "to add ten times more noise.",
            "Cosine: compute f at t = 0..T. alpha_bar_t/alpha_bar_{t-1} is f(t)/f(t-1), and beta_t is 1 minus that.",
            "beta = _T_REF / T * (_BETA_FIRST + u * (_BETA_LAST - _BETA_FIRST)). f = np.cos((np.arange(T + 1) / T + "
            "0.008) / 1.008 * np.pi / 2) ** 2, and beta is np.minimum(1 - f[1:] / f[:-1], 0.999).",
        ),
        read_next="python demos/forward_process.py, and its picture noising.png: all schedules on one digit",
        question="With T = 50, why is it a mistake to let beta run from 1e-4 to 0.02 as the paper does?",
        scene="noise",
        formulas=(
            Formula(
                "diffusion/schedule.py",
                "        beta_t = 1000/T (1e-4 + u (0.02 - 1e-4)),  u = (t - 1)/(T - 1)\n",
                "        beta_t = your turn: section 4 of the paper, times 1000/T\n",
            ),
            Formula(
                "diffusion/schedule.py",
                "        alpha_bar_t = f(t)/f(0),  f(t) = cos((t/T + 0.008)/1.008 pi/2)^2,\n"
                "        beta_t = min(1 - alpha_bar_t/alpha_bar_{t-1}, 0.999)\n",
                "        beta_t = your turn: eq. 17 of the paper, with s = 0.008, and the sentence below it\n",
            ),
        ),
    ),
    Exercise(
        name="training_loss",
        title="The training loss",
        minutes=15,
        teaches="why the noise that we draw is a perfect target: how an example is made, and which error is averaged",
        task="Write algorithm 1. In draw_batch draw t, a time in 1..T for each of the n examples, and eps, noise like "
        'x_0 in float32, both from rng. Then make the dictionary batch with "x_t", "target" and "t". The images x_0 of '
        "this step are there. In noise_prediction_losses compute one number for each example. model(x_t, t, labels) "
        'returns eps_hat, a Tensor. asarray(batch["target"]) is the target, batch.get("labels") the labels or None, '
        "and ops.mean takes axis=.",
        cuts=(
            Cut("train.py", "draw_batch", "t, one time for each example (algorithm 1, line 3)", "t =", "t ="),
            Cut(
                "train.py",
                "draw_batch",
                "eps, and the batch: x_t, the target and t (lines 4 and 5)",
                "eps =",
                "batch =",
            ),
            Cut("train.py", "noise_prediction_losses", "losses, one for each example (eq. 14)", "error =", "losses ="),
        ),
        laws=_laws(
            "test_train.py",
            "t_may_be_any_of_1_to_T_and_nothing_else",
            "batch_obeys_the_closed_form",
            "batch_is_a_pure_function_of_seed_and_step",
            "every_step_draws_anew",
            "loss_is_the_mean_square_over_pixels",
        ),
        hints=(
            "rng.integers(low, high, n) never returns high. t = 0 is left out: there x_t is the data, and there is no "
            "noise to predict.",
            'eps = rng.standard_normal(x_0.shape, dtype="float32"). The same eps makes batch["x_t"], by q_sample, and '
            'is batch["target"].',
            'error = model(batch["x_t"], batch["t"], batch.get("labels")) - asarray(batch["target"]). The loss is the '
            "mean of error * error over axis=(1, 2, 3).",
        ),
        read_next="tinydiff/train.py, train: the loop, which turns the losses into a step",
        question="Many pairs of x_0 and eps lead to one x_t. Which eps_hat has the least loss there?",
        scene="train",
        formulas=(
            Formula(
                "train.py",
                "E || eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t) ||^2 ",
                "your turn: ",
            ),
            Formula(
                "train.py",
                "the mean of (eps_hat - eps)^2 over its pixels (Ho et al. 2020, eq. 14).",
                "a mean over its pixels; your turn (Ho et al. 2020, eq. 14).",
            ),
        ),
    ),
    Exercise(
        name="ddpm_step",
        title="The DDPM step",
        minutes=15,
        teaches="how one denoising step is made: guess x_0, take the posterior at the guess, add fresh noise",
        task="Write ddpm_step, and _add_noise, which ddim_step uses too. predicted_x_0(schedule, x_t, eps_hat, t, "
        "clip) returns the guess. In _add_noise s is one time, or one time for each row. Where s = 0 no noise may "
        "enter, not even NaN.",
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
            "q_x_s_given_x_t_x_0 returns the mean. The caller chooses the variance: variance(schedule, t, s).",
            "Multiply the variance by (s > 0). If all of it is 0, return the mean before you use the noise: 0 times "
            "NaN is NaN.",
            "host_integers('s', s, 0, schedule.T) makes s an array, for one time or for rows. The result is mean + "
            "per_row(var**0.5, mean) * noise.",
        ),
        read_next="tinydiff/diffusion/samplers.py, sample: the loop around the step",
        question="Where does eps_hat enter this step, and what would the step be if x_0 were known?",
        formulas=(
            Formula(
                "diffusion/samplers.py",
                "posterior_mean(x_t, x_0_hat) + sqrt(variance(schedule, t, s)) noise,   no noise where s = 0",
                "your turn: algorithm 2 of the paper, with eq. 7 for its mean",
            ),
            Formula(
                "diffusion/samplers.py",
                "p(x_s | x_t) = N(posterior mean at x_0_hat, var)                     Ho",
                "your turn                                                            Ho",
            ),
            Formula(
                "diffusion/samplers.py",
                "mean + sqrt(var) noise; where s = 0 the mean alone",
                "Add noise of variance var to the mean; where s = 0 return the mean alone",
            ),
        ),
    ),
    Exercise(
        name="ddim_step",
        title="The DDIM step",
        minutes=15,
        teaches="why sampling can skip steps: the same noise is carried to another level, and eta adds fresh noise",
        task="Write the rest of ddim_step, from the line where x_0_hat is known. (The paper's alpha_t is alpha_bar_t "
        "here.) With clip, replace eps_hat by the noise that belongs to the clipped x_0_hat. Then compute the first "
        "two terms of eq. 12. _add_noise(schedule, mean, var, s, noise) adds the third.",
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
            "At eta = 0 the step is q_sample at s, with x_0_hat for x_0 and eps_hat for eps.",
            "The fresh noise has the variance var. So eps_hat brings that much less: the two variances add up to "
            "1 - alpha_bar_s.",
            "var = eta**2 * schedule.beta_tilde(t, s), and eps_std = (schedule.one_minus_alpha_bar[s] - var).clip(0) "
            "** 0.5: without the clip, rounding may leave -1e-17 under the root.",
        ),
        read_next="tinydiff/diffusion/solver.py, dpm_solver_2m: DDIM with a better guess at x_0",
        question="DDIM turns one x_T into one digit, every time, and DDPM does not. Which line makes the difference?",
        sampler="ddim_step",
        formulas=(
            Formula(
                "diffusion/samplers.py",
                "        var = eta^2 beta_tilde_{t|s}\n"
                "        x_s = sqrt(alpha_bar_s) x_0_hat + sqrt(1 - alpha_bar_s - var) eps_hat + sqrt(var) noise\n",
                "        var and x_s: your turn, eq. 12 and 16 of the paper, with s in place of t - 1\n",
            ),
            Formula(
                "diffusion/samplers.py",
                "    ddim_step        x_s = sqrt(alpha_bar_s) x_0_hat + sqrt(1 - alpha_bar_s - var) eps_hat",
                "    ddim_step        x_s = ... your turn ...",
            ),
        ),
    ),
    Exercise(
        name="guidance",
        title="Classifier-free guidance",
        minutes=10,
        teaches="how a label or a prompt steers each step: away from what the network predicts without it",
        task="Write the heart of classifier_free. Call the model once on 2N rows: N without a label, then N with their "
        "labels. Then combine the two predictions. no_label is the label that means none, and row_labels contains one "
        "label for each row.",
        cuts=(
            Cut(
                "diffusion/guidance.py",
                "classifier_free.eps_fn",
                "eps_u and eps_c from one call, and eps_hat (Ho & Salimans 2022, eq. 6)",
                "twice =",
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
            "xp.concatenate([x_t, x_t]) has 2N rows. The labels are an array of 2N integers, no_label first.",
            "asarray(model(...)) is an array, whether the model returns a Tensor or an array. Its first n rows are "
            "eps_u.",
            "eps_hat = eps_u + scale * (eps_c - eps_u): scale 0 is unconditional, 1 is conditional. Where a paper "
            "writes 1 + w, scale is 1 + w.",
        ),
        read_next="tinydiff/diffusion/guidance.py, classifier_guided: the same difference from a classifier's gradient",
        question="Why does a scale above 1 give digits that are easier to read, and that look more alike?",
        formulas=(
            Formula(
                "diffusion/guidance.py",
                "    eps_hat = eps_u + scale (eps_c - eps_u)                                  Ho",
                "    eps_hat = your turn                                                      Ho",
            ),
            Formula(
                "diffusion/guidance.py",
                "eq. 6).\n\n        eps_hat = eps_u + scale (eps_c - eps_u)\n",
                "eq. 6).\n\n        eps_hat = your turn: eq. 6 of the paper, where scale is 1 + w\n",
            ),
        ),
    ),
    Exercise(
        name="unbroadcast",
        title="Broadcasting undone",
        minutes=10,
        teaches="what the gradient of a broadcast is: a value that is used many times gets the sum of all its uses",
        task="Write unbroadcast. g has the shape of the result, and `shape` was broadcast to it. Return g, summed to "
        "`shape`. Broadcasting may have added axes in front, and it may have stretched axes of size 1.",
        cuts=(Cut("autograd.py", "unbroadcast", "g summed over every axis that broadcasting made"),),
        laws=(
            "test_autograd.py::test_unbroadcast_is_the_adjoint_of_broadcasting",
            "ops/test_every_op.py::test_the_gradient_of_a_linear_op_is_its_adjoint[add]",
            "ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[mul]",
            "ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[matmul]",
        ),
        hints=(
            "Broadcasting aligns shapes at their last axis. So g.ndim - len(shape) axes were added in front.",
            "Sum over these first. Then g has as many axes as `shape`: which of them have size 1 in `shape` and more "
            "in g?",
            "g.sum(axes, keepdims=True) sums over the stretched axes and leaves them at size 1. A sum over no axes, "
            "g.sum(()), is g.",
        ),
        read_next="tinydiff/autograd.py, pointwise: every op that broadcasts calls unbroadcast there",
        question="A bias (C,) is added to maps (N, H, W, C). What is its gradient, and why is it large?",
        scene="train",
    ),
    Exercise(
        name="backward_walk",
        title="The walk backwards",
        minutes=30,
        teaches="what backpropagation is: each node is visited once, after all nodes that use it, with the sum of "
        "their gradients",
        task="Write _inputs_first, the order of the walk, _push_back, the walk, and _hand_on, one step of it. A place "
        "in the graph is a leaf (a Tensor) or a node. node.inputs are the places from which a node was computed, with "
        "None where no gradient is wanted; a leaf has none. node.number is larger than the numbers of its inputs. In "
        "_push_back the last place is the output, and g is its gradient. Add the gradient of a leaf to its .grad, "
        "which is None at first. In _hand_on node.vjp(g) returns one entry for each of node.inputs: an array, or a "
        "function without arguments that returns one. A leaf's .grad must be an array of its own.",
        cuts=(
            Cut("autograd.py", "_inputs_first", "a list of all places below root, each after its inputs, no recursion"),
            Cut("autograd.py", "_push_back", "walk the places, the output first: a leaf keeps its gradient"),
            Cut("autograd.py", "_hand_on", "add the gradient of each input to the sums so far, grads"),
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
            "The order: collect every place that can be reached from root, each once (a dictionary by id), with a list "
            "of those whose inputs are still to be looked at. Then sort by number, with 0 for a leaf.",
            "The walk: keep a dictionary from id(place) to the sum of its gradients so far, at first "
            "{id(places[-1]): g}. Take the places from the end. For a leaf: place.grad = xp.array(g if place.grad is "
            "None else place.grad + g). For a node: _hand_on(place, g, grads).",
            "One step: call vjp once, and skip inputs that are None. dx = dx() if callable(dx) else dx, then "
            "grads[id(x)] = grads[id(x)] + dx if id(x) in grads else dx. Do not write +=: it would change an array "
            "that another place uses.",
        ),
        read_next="tinydiff/autograd.py, op: it makes the nodes that you have just walked",
        question="60 doublings y + y make 2^60 paths. Why does the walk take 60 steps and not 2^60?",
        scene="train",
    ),
    Exercise(
        name="conv2d",
        title="Convolution forward",
        minutes=20,
        teaches="that a convolution is one matrix product, once the window of each output pixel is laid out as a row",
        task="Write _taps, im2col and the line of conv2d that computes y. A tap is one place (k, l) of the filter. For "
        "each tap, in the order of w, _taps yields two slices: the rows and the columns of the padded image that the "
        "tap meets while the filter moves. im2col pads x with zeros and puts the pixels of all taps side by side.",
        cuts=(
            Cut("ops/conv.py", "conv2d", "y (N, OH, OW, O), one matrix product plus b", "y =", "y ="),
            Cut("ops/conv.py", "im2col", "the windows (N, OH, OW, KH KW C): tap by tap, each with all its channels"),
            Cut("ops/conv.py", "_taps", "for each tap its rows and columns of padded x, as two slices", "for k"),
        ),
        laws=(
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_kernel_stride_and_padding",
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_size",
            "ops/test_conv.py::test_more_channels_than_256_are_compared_by_value",
        ),
        hints=(
            "Output pixel (i, j) meets tap (k, l) at the padded pixel (i stride + k, j stride + l), and i runs over "
            "range(oh). As a slice the rows are slice(k, k + stride * oh, stride).",
            "padded[:, rows, columns] is (N, OH, OW, C): one tap of all windows. xp.concatenate(list, -1) puts a list "
            "of them side by side. xp.pad takes one pair (before, after) for each axis.",
            "y = im2col(x, w.shape, stride, padding) @ filters + b. The rows of filters have the order (KH, KW, C), as "
            "the windows do.",
        ),
        read_next="tinydiff/fast/winograd.py: the same numbers with a quarter of the multiplications",
        question="How often does im2col copy each pixel for a 3x3 filter of stride 1, and what do these copies buy?",
        formulas=(
            Formula(
                "ops/conv.py",
                "    y = X W + b        dX = g W^T        dW = X^T g        db = sum of g\n",
                "    y = your turn      dX = g W^T        dW = X^T g        db = sum of g\n",
            ),
        ),
    ),
    Exercise(
        name="conv2d_backward",
        title="Convolution backward",
        minutes=20,
        teaches="that both gradients of a matrix product are matrix products, and that the gradient of a copy is a sum",
        task="Write vjp in conv2d, which returns (dx, dw, db), and col2im, the adjoint of im2col. im2col copied each "
        "pixel to several windows. col2im takes one gradient for each copy and adds it to the pixel. _taps gives the "
        "rows and columns of each tap, as in im2col.",
        cuts=(
            Cut("ops/conv.py", "conv2d.vjp", "the gradients of x, w and b from g (N, OH, OW, O)"),
            Cut("ops/conv.py", "col2im", "a map of x_shape: each gradient added to the pixel it belongs to", "dx ="),
        ),
        laws=(
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_kernel_stride_and_padding",
            "ops/test_conv.py::test_conv2d_is_its_definition_for_every_size",
            "ops/test_every_op.py::test_the_gradient_of_a_linear_op_is_its_adjoint[conv2d]",
        ),
        hints=(
            "With the windows as rows X, the filters W and g as rows, y = X W + b. Then dX = g W^T, dW = X^T g, and db "
            "is the sum of g over all pixels of all images.",
            "g @ filters.T has the shape of the windows, and col2im makes dx of it. For dw reshape the windows to (-1, "
            "len(filters)) and g to (-1, O), and reshape the product to w.shape.",
            "In col2im start from a padded map of zeros. For tap number k: dx[:, rows, cols] += columns[..., k * c : "
            "(k + 1) * c]. In the end cut the padding off.",
        ),
        read_next="tinydiff/fast/fused.py: a whole block of the network in few passes over memory",
        question="Why must col2im add, where im2col only copied?",
        scene="train",
        formulas=(
            Formula(
                "ops/conv.py",
                "    y = X W + b        dX = g W^T        dW = X^T g        db = sum of g\n",
                "    y = X W + b        dX, dW and db are your turn\n",
            ),
        ),
    ),
    Exercise(
        name="group_norm_backward",
        title="Group norm backward",
        minutes=20,
        teaches="what a normalisation hides from the gradient: the level and the scale of x, so two parts are removed",
        task="Write vjp in group_norm, which returns (dx, dgamma, dbeta). y = gamma x_hat + beta and x_hat = (x - "
        "mean) rstd, where mean and rstd depend on x. The docstring of the file describes dx in words. dgamma and "
        "dbeta, both (C,), are sums over all pixels of all images. x_hat has the shape (N, pixels, groups, channels of "
        "a group), and g has the shape of x, which is `shape`.",
        cuts=(Cut("ops/norm.py", "group_norm.vjp", "the gradients of x, gamma and beta from g"),),
        laws=(
            "ops/test_every_op.py::test_the_gradient_is_the_derivative_along_a_random_direction[group_norm]",
            "ops/test_norm.py::test_group_norm_forgets_each_groups_level_and_scale",
            "ops/test_norm.py::test_a_constant_group_becomes_its_shift",
        ),
        hints=(
            "y = gamma x_hat + beta. So dbeta is a sum of g, dgamma is a sum of g x_hat, and what x_hat receives is d.",
            "Reshape d to x_hat.shape. The mean over a group is d.mean((1, 3), keepdims=True).",
            "dx = rstd * (d - d.mean((1, 3), keepdims=True) - x_hat * (d * x_hat).mean((1, 3), keepdims=True)), "
            "reshaped to `shape`. dbeta is g.sum over all axes but the last.",
        ),
        read_next="tinydiff/fast/norm.py: the same equation with fewer passes over memory",
        question="If g is 1 everywhere, dx is 0 here. Why? And why does no test of ours use such a g?",
        scene="train",
        formulas=(
            Formula(
                "ops/norm.py",
                "    dx = (d - mean(d) - x_hat mean(d x_hat))/sqrt(var + eps)\n",
                "    dx = your turn\n",
            ),
        ),
    ),
    Exercise(
        name="attention",
        title="Attention",
        minutes=20,
        teaches="how a pixel or a word looks at all others: a softmax of products, and the gradients through it",
        task="Write attention: y and vjp, which returns (dq, dk, dv). softmax_array(scores) and softmax_gradient(p, "
        "dp) work on the last axis. Where mask is False the score is -xp.inf.",
        cuts=(Cut("ops/matrix.py", "attention", "y and its vjp (Vaswani et al. 2017, eq. 1)", "scale ="),),
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
            "p = softmax(q k^T / sqrt(D)) and y = p v. k.swapaxes(-1, -2) is k^T for any number of leading axes, and @ "
            "multiplies the last two axes.",
            "y = p v gives dp = g v^T and dv = p^T g. Then softmax_gradient(p, dp) is the gradient of the scores.",
            "The scores are scale q k^T. So with ds = softmax_gradient(p, dp) * scale: dq = ds k and dk = ds^T q.",
        ),
        read_next="tinydiff/nn/layers.py, Attention: several heads, and the layer around them",
        question="Why is the score divided by sqrt(D)? What would the softmax do without it?",
        formulas=(
            Formula(
                "ops/matrix.py",
                "y = p v,    p = softmax(q k^T / sqrt(D))                          Vaswani",
                "your turn                                                         Vaswani",
            ),
            Formula(
                "ops/matrix.py",
                "the weights are the softmax of q k^T / sqrt(D).",
                "the weights are your turn (Vaswani et al. 2017, eq. 1).",
            ),
        ),
    ),
    Exercise(
        name="ema",
        title="Running averages: Adam and EMA",
        minutes=15,
        teaches="that one formula does three jobs: Adam's mean and mean square of the gradient choose the step, and "
        "samples are drawn with the average of the weights",
        task="Write adam_update (Kingma & Ba 2015, algorithm 1), the line of EMA.update that chooses d, and "
        "ema_update. The average keeps the share d of itself and takes 1 - d of the weights. d is decay, but less in "
        "the first updates: at most (1 + n)/(10 + n), where n counts them from 0. All three write to arrays in place: "
        "m[...] = ..., and the same for v, p.data and average. p.grad is None for a parameter without a gradient, "
        "which counts as one of gradient 0. Weights that stand still must be their own average, to the last bit.",
        cuts=(
            Cut("optim.py", "adam_update", "m, v and p.data after step k (Kingma & Ba 2015, algorithm 1)"),
            Cut("optim.py", "EMA.update", "d, from self.decay and self.num_updates", "d =", "d ="),
            Cut("optim.py", "ema_update", "the average's next value"),
        ),
        laws=_laws(
            "test_optim.py",
            "adam_is_the_algorithm_of_the_paper",
            "the_first_step_has_length_lr",
            "a_constant_gradient_moves_by_the_rates_alone",
            "a_parameter_that_waits_for_its_gradient_counts_as_one_of_gradient_0",
            "updates_are_written_in_place",
            "the_average_is_a_weighted_sum_of_all_values_so_far",
            "the_average_of_what_stands_still_is_itself",
        ),
        hints=(
            "Each average is d times its old value plus (1 - d) times the new value. beta1 is Adam's d for g, and "
            "beta2 is its d for g * g.",
            "m and v start at 0, so after k steps their weights add up to 1 - beta1**k and 1 - beta2**k. Adam divides "
            "by these. EMA starts at the random weights, so it lets d start small: (1 + n) / (10 + n) at update n.",
            "p.data[...] = p.data - lr * m_hat / (xp.sqrt(v_hat) + eps). d = min(self.decay, (1 + self.num_updates) / "
            "(10 + self.num_updates)). d a + (1 - d) theta = a + (1 - d)(theta - a), and the second form changes "
            "nothing where theta = a.",
        ),
        read_next="tinydiff/fast/optim.py: the same updates on one long array",
        question="With decay 0.999 and no warm-up, how much of the random start is left after 1,000 steps?",
        scene="train",
        formulas=(
            Formula(
                "optim.py",
                "        m <- beta1 m + (1 - beta1) g                    m_hat = m / (1 - beta1^k)\n"
                "        v <- beta2 v + (1 - beta2) g^2                  v_hat = v / (1 - beta2^k)\n"
                "        theta <- theta - lr m_hat / (sqrt(v_hat) + eps)\n",
                "        m, v and theta: your turn, algorithm 1 of the paper\n",
            ),
            Formula(
                "optim.py",
                "average <- d average + (1 - d) theta,    d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...",
                "average and d: your turn; n = 0, 1, ... counts the updates",
            ),
            Formula(
                "optim.py",
                '"""average <- average + (1 - d) (theta - average).  If theta',
                '"""Write the next value of the average.  If theta',
            ),
        ),
    ),
    Exercise(
        name="time_code",
        title="The code of the time",
        minutes=10,
        teaches="how a network gets t: as hands of clocks from fast to slow, so that near times have similar codes and "
        "no two the same one",
        task="Write _time_code, the row of one time k: 2 half numbers, first all sines and then all cosines. Compute "
        "them with Python's floats, which are float64. time_code puts the rows together and casts them in the end.",
        cuts=(Cut("nn/unet.py", "_time_code", "sines and cosines of k times the frequencies f_i"),),
        laws=_laws(
            "nn/test_unet.py",
            "the_time_code_holds_sines_then_cosines",
            "the_time_code_is_rounded_last",
            "no_two_times_have_one_code",
            "near_times_have_similar_codes",
        ),
        hints=(
            "f_i = FREQUENCY_RANGE ** (-i / half) for i = 0..half - 1. The fastest hand, i = 0, turns once in 2 pi "
            "steps.",
            "math.sin and math.cos are enough. Return a list or a tuple of numbers.",
            "[math.sin(k * f) for f in frequencies] + [math.cos(k * f) for f in frequencies].",
        ),
        read_next="tinydiff/nn/unet.py, UNet.code: the two layers that the code goes through",
        question="Why not give the network t/T as one number?",
        formulas=(
            Formula(
                "nn/unet.py",
                "        [sin(t f_0), ..., sin(t f_{h-1}), cos(t f_0), ..., cos(t f_{h-1})],\n"
                "        f_i = FREQUENCY_RANGE^(-i/h),  h = features/2\n",
                "        your turn: the equation of section 3.5, but first all sines and then all cosines\n",
            ),
        ),
    ),
)
