// The kernels that kernels.py launches: each is one loop over independent results, EACH(i, size).
//
// Plain C but for the first index and the step of the loop (FIRST, STEP), and for the numbers' type T, which kernels.py
// defines; so the tests compile this text for the host too.  Sums run in one order: no atomics, the same bits every time.

typedef long long I;
#define EACH(i, size) for (I i = FIRST; i < (size); i += STEP)

/* out[m] = [the tap (k, l, c) of the window of output pixel m = (n, row, column), 0 outside the map; ones times 1] */
extern "C" __global__ void im2col(I size, const T *x, T *out, I h, I w, I c, I oh, I ow, I kh, I kw, I stride, I pad,
                                  I ones) {
    EACH(i, size) {
        I taps = kh * kw * c, m = i / (taps + ones), tap = i % (taps + ones);
        if (tap >= taps) {
            out[i] = 1;
            continue;
        }
        I channel = tap % c, l = tap / c % kw, k = tap / (c * kw);
        I row = m / ow % oh * stride + k - pad, column = m % ow * stride + l - pad, n = m / (ow * oh);
        bool inside = row >= 0 && row < h && column >= 0 && column < w;
        out[i] = inside ? x[((n * h + row) * w + column) * c + channel] : T(0);
    }
}

/* The adjoint: each pixel of the map gathers what was copied from it. */
extern "C" __global__ void col2im(I size, const T *in, T *x, I h, I w, I c, I oh, I ow, I kh, I kw, I stride, I pad) {
    EACH(i, size) {
        I channel = i % c, column = i / c % w, row = i / (c * w) % h, n = i / (c * w * h);
        T sum = 0;
        for (I k = 0; k < kh; ++k) {
            I a = row + pad - k;
            if (a < 0 || a % stride || a / stride >= oh) continue;
            for (I l = 0; l < kw; ++l) {
                I b = column + pad - l;
                if (b < 0 || b % stride || b / stride >= ow) continue;
                sum += in[((((n * oh + a / stride) * ow + b / stride) * kh + k) * kw + l) * c + channel];
            }
        }
        x[i] = sum;
    }
}

/* y[n, pixel, o] += b[n, o], or b[o] where each = 0 */
extern "C" __global__ void add_bias(I size, T *y, const T *b, I pixels, I o, I each) {
    EACH(i, size) y[i] += b[each * (i / (pixels * o)) * o + i % o];
}

/* out[b, s, o] = sum of x[b, m, o] over the segment s of 0..rows-1 */
extern "C" __global__ void sum_segments(I size, const T *x, T *out, I rows, I segments, I o) {
    EACH(i, size) {
        I channel = i % o, s = i / o % segments, b = i / (o * segments);
        T sum = 0;
        for (I m = rows * s / segments; m < rows * (s + 1) / segments; ++m) sum += x[(b * rows + m) * o + channel];
        out[i] = sum;
    }
}

/* Mean, and sum of squared deviations from it, of each segment of each image's channel. */
extern "C" __global__ void norm_segments(I size, const T *x, T *mean, T *square, I pixels, I segments, I c) {
    EACH(i, size) {
        I channel = i % c, s = i / c % segments, n = i / (c * segments);
        I first = pixels * s / segments, last = pixels * (s + 1) / segments;
        const T *p = x + n * pixels * c + channel;
        T sum = 0, sum_square = 0;
        for (I m = first; m < last; ++m) sum += p[m * c];
        T level = sum / T(last - first);
        for (I m = first; m < last; ++m) sum_square += (p[m * c] - level) * (p[m * c] - level);
        mean[i] = level;
        square[i] = sum_square;
    }
}

/* Those of an image's group put together (Chan et al. 1979), for each of its channels. */
extern "C" __global__ void norm_moments(I size, const T *part, const T *square, T *mean, T *rstd, I pixels, I segments,
                                        I c, I groups, double eps) {
    EACH(i, size) {
        I width = c / groups, n = i / groups, first = i % groups * width;
        T sum = 0, deviation = 0, count = T(pixels * width);
        for (I s = 0; s < segments; ++s) {
            T rows = T(pixels * (s + 1) / segments - pixels * s / segments);
            for (I k = first; k < first + width; ++k) sum += rows * part[(n * segments + s) * c + k];
        }
        T level = sum / count;
        for (I s = 0; s < segments; ++s) {
            T rows = T(pixels * (s + 1) / segments - pixels * s / segments);
            for (I k = first; k < first + width; ++k) {
                I j = (n * segments + s) * c + k;
                deviation += square[j] + rows * (part[j] - level) * (part[j] - level);
            }
        }
        for (I k = first; k < first + width; ++k) {
            mean[n * c + k] = level;
            rstd[n * c + k] = T(1) / sqrt(deviation / count + T(eps));
        }
    }
}

/* z = gamma (x - mean) rstd + beta; silu(z) where silu = 1 */
extern "C" __global__ void norm_apply(I size, const T *x, const T *mean, const T *rstd, const T *gamma, const T *beta,
                                      T *y, I pixels, I c, I silu) {
    EACH(i, size) {
        I k = i % c, j = i / (pixels * c) * c + k;
        T z = gamma[k] * ((x[i] - mean[j]) * rstd[j]) + beta[k];
        y[i] = silu ? T(0.5) * z * (T(1) + tanh(T(0.5) * z)) : z;
    }
}

/* The derivative of z's activation at pixel i, times g. */
#define BEHIND(g, x_hat) \
    T z = gamma[k] * (x_hat) + beta[k], t = T(1) + tanh(T(0.5) * z); \
    T dz = silu ? (g) * T(0.5) * t * (T(1) + T(0.5) * z * (T(2) - t)) : (g)

/* Sums of dz x_hat and of dz over each segment of each image's channel. */
extern "C" __global__ void norm_backward_segments(I size, const T *x, const T *g, const T *mean, const T *rstd,
        const T *gamma, const T *beta, T *by_scale, T *by_shift, I pixels, I segments, I c, I silu) {
    EACH(i, size) {
        I k = i % c, s = i / c % segments, n = i / (c * segments), j = n * c + k;
        T scale = 0, shift = 0;
        for (I m = pixels * s / segments; m < pixels * (s + 1) / segments; ++m) {
            I at = (n * pixels + m) * c + k;
            T x_hat = (x[at] - mean[j]) * rstd[j];
            BEHIND(g[at], x_hat);
            scale += dz * x_hat;
            shift += dz;
        }
        by_scale[i] = scale;
        by_shift[i] = shift;
    }
}

/* Those of an image added up: for each channel, and times gamma, as means over the group. */
extern "C" __global__ void norm_backward_sums(I size, const T *by_scale, const T *by_shift, const T *gamma, T *dgamma,
        T *dbeta, T *along, T *level, I pixels, I segments, I c, I groups) {
    EACH(i, size) {
        I width = c / groups, n = i / groups, first = i % groups * width;
        T sum_along = 0, sum_level = 0, count = T(pixels * width);
        for (I k = first; k < first + width; ++k) {
            T scale = 0, shift = 0;
            for (I s = 0; s < segments; ++s) {
                scale += by_scale[(n * segments + s) * c + k];
                shift += by_shift[(n * segments + s) * c + k];
            }
            dgamma[n * c + k] = scale;
            dbeta[n * c + k] = shift;
            sum_along += gamma[k] * scale;
            sum_level += gamma[k] * shift;
        }
        along[i] = sum_along / count;
        level[i] = sum_level / count;
    }
}

/* dx = rstd (gamma dz - mean(gamma dz) - x_hat mean(gamma dz x_hat)), means over the group; and, as the last results,
   each image's sums by scale and by shift (2, images, c) added up */
extern "C" __global__ void norm_backward_apply(I size, const T *x, const T *g, const T *mean, const T *rstd,
        const T *gamma, const T *beta, const T *along, const T *level, const T *sums, T *dx, T *total, I images,
        I pixels, I c, I groups, I silu) {
    EACH(i, size) {
        I rest = i - images * pixels * c;
        if (rest >= 0) {
            T sum = 0;
            for (I n = 0; n < images; ++n) sum += sums[(rest / c * images + n) * c + rest % c];
            total[rest] = sum;
            continue;
        }
        I k = i % c, n = i / (pixels * c), j = n * c + k, group = n * groups + k / (c / groups);
        T x_hat = (x[i] - mean[j]) * rstd[j];
        BEHIND(g[i], x_hat);
        dx[i] = rstd[j] * (gamma[k] * dz - level[group] - x_hat * along[group]);
    }
}

/* out[m] = [a[m], b[m]] for rows of c and d numbers, or back from out where split = 1 */
extern "C" __global__ void concat(I size, T *a, T *b, T *out, I c, I d, I split) {
    EACH(i, size) {
        I m = i / (c + d), k = i % (c + d);
        T *part = k < c ? a + m * c + k : b + m * d + k - c;
        if (split) *part = out[i]; else out[i] = *part;
    }
}

extern "C" __global__ void silu(I size, const T *x, T *y) {
    EACH(i, size) y[i] = T(0.5) * x[i] * (T(1) + tanh(T(0.5) * x[i]));
}

extern "C" __global__ void silu_backward(I size, const T *x, const T *g, T *dx) {
    EACH(i, size) {
        T h = T(0.5) * x[i], t = T(1) + tanh(h);
        dx[i] = g[i] * T(0.5) * t * (T(1) + h * (T(2) - t));
    }
}

/* p = exp(x - max) / sum of them, for each row */
extern "C" __global__ void softmax(I size, const T *x, T *p, I width) {
    EACH(i, size) {
        T top = x[i * width], sum = 0;
        for (I k = 1; k < width; ++k) top = x[i * width + k] > top ? x[i * width + k] : top;
        for (I k = 0; k < width; ++k) sum += p[i * width + k] = exp(x[i * width + k] - top);
        for (I k = 0; k < width; ++k) p[i * width + k] /= sum;
    }
}

/* dx = p (g - sum of p g), for each row */
extern "C" __global__ void softmax_backward(I size, const T *p, const T *g, T *dx, I width) {
    EACH(i, size) {
        T sum = 0;
        for (I k = 0; k < width; ++k) sum += p[i * width + k] * g[i * width + k];
        for (I k = 0; k < width; ++k) dx[i * width + k] = p[i * width + k] * (g[i * width + k] - sum);
    }
}

#define FINITE(x) ((x) - (x) == 0)

/* Adam with both bias corrections folded into rate and eps, see optim.py; nothing where the gradient's norm is not
   finite */
extern "C" __global__ void adam(I size, T *theta, const T *g, T *m, T *v, const T *norm, double beta1, double beta2,
                                double rate, double eps, double keep) {
    if (!FINITE(*norm)) return;
    EACH(i, size) {
        m[i] = T(beta1) * m[i] + T(1 - beta1) * g[i];
        v[i] = T(beta2) * v[i] + T(1 - beta2) * g[i] * g[i];
        theta[i] = T(keep) * theta[i] - T(rate) * m[i] / (sqrt(v[i]) + T(eps));
    }
}

/* average += (1 - d) (theta - average), under the same condition */
extern "C" __global__ void ema(I size, T *average, const T *theta, const T *norm, double rest) {
    if (!FINITE(*norm)) return;
    EACH(i, size) average[i] += T(rest) * (theta[i] - average[i]);
}

/* norm = sqrt(square); g is scaled to max_norm where its norm is larger and finite */
extern "C" __global__ void clip(I size, T *g, const T *square, T *norm, double max_norm) {
    T found = sqrt(*square);
    EACH(i, size) {
        if (i == 0) *norm = found;
        if (found > T(max_norm) && FINITE(found)) g[i] *= T(max_norm) / found;
    }
}

/* Where some arrays lie, and where each ends once they lie end to end: passed by value, within the 4,096 bytes for
   all of a kernel's arguments. */
#define PARTS 240
struct Parts {
    const T *at[PARTS];
    I end[PARTS];
};

/* out = the arrays end to end, 0 where one lies nowhere */
extern "C" __global__ void gather(I size, T *out, Parts parts, I count) {
    EACH(i, size) {
        I first = 0, last = count - 1;  // the array with number i is one of these
        while (first < last) {
            I middle = (first + last) / 2;
            if (i < parts.end[middle]) last = middle; else first = middle + 1;
        }
        out[i] = parts.at[first] ? parts.at[first][i - (first ? parts.end[first - 1] : 0)] : T(0);
    }
}
