"""Answers to the questions of the exercises and of the tour, shown after a reader has written an answer of their own.

    python demos/exercises/exercise.py answer stop3       the question of the third stop of demos/README.md
    python demos/exercises/exercise.py answer posterior   the question at the end of an exercise

Each answer names the law or the program that shows it.
"""

ANSWERS = {
    "closed_form": "The coefficients are sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t). The variances of independent "
    "parts add up. So if x_0 has variance 1, x_t has variance alpha_bar_t + (1 - alpha_bar_t) = 1 at every t. The "
    "network therefore sees inputs of one size, however noisy they are. The law is unit_variance_is_kept.",
    "posterior": "The last step returns x_0_hat itself, with no part of x_1 and no noise. This needs no special case "
    "in the code: alpha_bar_0 = 1, so 1 - alpha_bar_s is 0 at s = 0, and with it the factor of x_t and the variance.",
    "schedules": "A step of the paper's size removes little: after 50 of them sqrt(alpha_bar_T) is still 0.77, so x_T "
    "is mostly x_0. Sampling starts from pure noise, which such a network has never seen. With the factor 1000/T the "
    "sum of the betas is the same for every T, and x_T is noise.",
    "training_loss": "The mean of eps over all pairs that lead to this x_t, E[eps | x_t]: of all answers the mean has "
    "the least mean square error. So the network learns an average, although each target is one draw, and the loss "
    "cannot fall to 0.",
    "ddpm_step": "eps_hat enters only through x_0_hat, the guess at x_0. If x_0 were known, the step would be a draw "
    "from the posterior q(x_s | x_t, x_0), which needs no network. The law is "
    "ddpm_with_the_true_noise_is_the_posterior.",
    "ddim_step": "The line of var. With eta = 0 it is 0, so _add_noise adds nothing, and x_s depends on x_t alone. "
    "With eta = 1 var is beta_tilde, and the step is that of DDPM. The program same_start.py shows both.",
    "guidance": "eps_c - eps_u points to what is more likely with the label than without. A scale above 1 goes further "
    "that way than the data do: to pictures that no other class could have. They are easy to read. Unusual digits, "
    "which could be two classes, are avoided, so the pictures look more alike.",
    "unbroadcast": "The gradient is the sum of g over N, H and W. The bias is added at each pixel of each image, and "
    "each of these N H W uses counts. The sum has that many terms, so it is large, and it grows with the image.",
    "backward_walk": "Each place waits until all places that use it have added their gradients to it. Then it passes "
    "the sum on, once. The 2^60 paths share their parts: by the distributive law the sum over all paths is 60 "
    "doublings. The law is a_shared_node_passes_the_sum_of_its_gradients_once.",
    "conv2d": "Up to nine times, once for each window that contains the pixel. For this memory one gets one large "
    "matrix product, and matrix products are what processors do fastest. Loops over pixels and taps would make "
    "millions of small steps.",
    "conv2d_backward": "im2col copied a pixel into several windows, so the pixel changes several numbers of the "
    "result. The gradient of a value that is used several times is the sum of the gradients of its uses. Assigning "
    "would keep only the last of them.",
    "group_norm_backward": "x_hat does not change if a constant is added to a group, and with g = 1 and equal gamma, "
    "<g, y> is the sum of x_hat, which is always 0. So its gradient is 0, whatever the formula has beside it. A test "
    "with such a g would accept a wrong dx: the tests take random numbers.",
    "attention": "A product of D pairs of random numbers of variance 1 has the variance D. Without the division the "
    "scores grow with sqrt(D), and the softmax picks one key and gives the others nearly 0. There its gradient is "
    "nearly 0 too, and nothing can be learnt.",
    "ema": "0.999^1000 = 0.37: more than a third of the average would still be the random start, and pictures drawn "
    "with it would be noise. With the warm-up the first updates have a small d, so the start is forgotten within some "
    "steps.",
    "time_code": "One number changes by 1/T from one time to the next. The layers would have to be very steep to tell "
    "near times apart, and a network learns steep functions slowly. The hands of the clocks turn at many speeds: the "
    "fast ones tell near times apart, and the slow ones far times.",
}

STOPS = {
    "stop1": (
        "Why does x_t need no loop and no network, and what would the best reverse step be if x_0 were known?",
        "Each step multiplies by a number and adds independent Gaussian noise. Such steps compose: the factors "
        "multiply, the variances add up, and t steps are one: sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. "
        "Nothing in it depends on the data, so there is nothing to learn. If x_0 were known, Bayes' rule would give "
        "the reverse step: the posterior q(x_s | x_t, x_0), a Gaussian with known mean and variance.",
    ),
    "stop2": (
        "Where do the targets come from, and what does the network learn?",
        "We draw the noise and add it, so the exact answer of every example is known, without anybody's label. Many "
        "pairs of a picture and a noise lead to the same x_t. The loss is a mean square, so the best prediction is the "
        "mean of all noises that are possible there. The sampler needs just this mean.",
    ),
    "stop3": (
        "Why does one big step give an average digit, and many small steps a sharp digit?",
        "The best guess at x_0 from pure noise is the mean of all digits: a blur. A small step goes only a little "
        "towards the guess and adds fresh noise. The new x_t fits fewer digits than before, so the next guess is the "
        "mean of fewer. After many steps one digit is left. The noise decides which.",
    ),
    "stop4": (
        "What does a diffusion model learn? Explain it with points, without images.",
        "At every place and noise level it learns an arrow: from a noisy point towards the mean of the data points "
        "that it may have come from. Far out, at high noise, all arrows point to the middle of the data. Near the "
        "data, at low noise, each points to the nearest part. Whoever follows the arrows from noise ends at the data.",
    ),
    "stop5": (
        "What does a step cost, how does it improve the digits, and which errors does the noise of a step remove?",
        "A step costs one evaluation of the network, so time grows in proportion to the number of steps. More steps "
        "follow the path from noise to data more closely, and after some number the network's own errors are all that "
        "is left. With noise in each step, as in DDPM, an early error is partly washed out, because later steps start "
        "from a point that is typical for its noise level. Without noise, as in DDIM, it is kept.",
    ),
    "stop6": (
        "What are eps_u and eps_c, and why does their difference point to a label?",
        "They are the network's predictions without a label and with it. By Bayes' rule their difference is, but for a "
        "factor, the gradient of log p(label | x_t): the direction in which a classifier would become more certain of "
        "the label. Guidance goes further in that direction than the data ask for.",
    ),
    "stop7": (
        "How does a prompt steer each step?",
        "A small transformer turns the words into vectors. Each part of the picture attends to the words, so the "
        "predicted noise depends on them. Each step is guided as by a label: away from the prediction for an empty or "
        "a negative prompt, towards the prediction for this one. Early steps decide the digit, late ones the strokes.",
    ),
    "stop8": (
        "Which mistakes make pictures grey, noisy, washed out or all alike?",
        "Grey: a sign or a coefficient of the reverse step is wrong, so x_t leaves the noise levels that the network "
        "knows. Noisy: noise is added in the last step, or the variance is too large for few steps. Washed out: pixels "
        "were not scaled to [-1, 1], or x_0_hat was not clipped. All alike: there is too much guidance. pitfalls.py "
        "makes each.",
    ),
    "stop9": (
        "Why can a denoiser do more than draw samples?",
        "At each step it tells how x_t should change to be more like the data, and it does so for any x_t. One may "
        "keep known pixels and let it fill in the rest, start from a noised picture and not from noise, or follow the "
        "steps backwards to encode one. Its errors at all noise levels together bound the probability of a picture: so "
        "it also compresses.",
    ),
    "stop10": (
        "What do a VAE, a GAN, diffusion and diffusion of latents each give up?",
        "A VAE draws in one evaluation, and its strokes are soft: it averages over what it cannot tell. A GAN is sharp "
        "and fast, its training is a balance that can tip, and it may leave out a part of the data. Diffusion trains "
        "stably, covers the data and can be guided, and it is a hundred times slower or more. In latents it is faster, "
        "and the autoencoder limits the detail.",
    ),
    "stop11": (
        "How does a loss become an update of the parameters, and where does the time go?",
        "Each op notes how to push a gradient back to its inputs. From the loss back, each place gets the sum of the "
        "gradients of its uses, until every parameter has one. Adam divides a running mean of it by the root of a "
        "running mean square, and takes a step. Nearly all the time goes to the convolutions, forward and twice "
        "backward, and these are matrix products.",
    ),
}
