// The kernels that kernels.py launches, in two kinds.
//
//     EACH(i, size)     independent results, one thread each
//     BLOCKS(j, size)   independent results, a block of threads each: its lanes share the loops LANES(m, rows) and add up
//                       what they found by total(value); all of them pass each total
//
// kernels.py defines the numbers' type T, the integers' type I (short ones where they do: they divide five times faster)
// and THREADS, how many a block has.  The tests compile this text for the host too, with lanes of their own.  Sums run in
// one order: no atomics, the same bits every time.

#ifdef __CUDACC__  // NVRTC defines it
#define LANE I(threadIdx.x)
#define BLOCK I(blockIdx.x)
#define NUM_BLOCKS I(gridDim.x)
#endif
#define EACH(i, size) for (I i = BLOCK * THREADS + LANE; i < (size); i += NUM_BLOCKS * THREADS)
#define BLOCKS(j, size) for (I j = BLOCK; j < (size); j += NUM_BLOCKS)
#define LANES(m, rows) for (I m = LANE; m < (rows); m += THREADS)

/* The sum of the lanes' values, for every lane: the upper half is added to the lower until one is left. */
__device__ T total(T value) {
    __shared__ T part[THREADS];
    part[LANE] = value;
    for (I half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (LANE < half) part[LANE] += part[LANE + half];
    }
    __syncthreads();
    value = part[0];
    __syncthreads();  // before the next call writes there
    return value;
}

/* out[m] = the tap (k, l, c) of the window of output pixel m = (n, row, column), 0 outside the map; after the taps, where
   a row is wider, a 1 and then zeros.  A thread finds its place once for `run` channels, 1 or 4, that divide c. */
extern "C" __global__ void im2col(I size, const T *x, T *out, I h, I w, I c, I oh, I ow, I kh, I kw, I stride, I pad,
                                  I width, I run) {
    EACH(i, size) {
        I at = i * run, taps = kh * kw * c, m = at / width, tap = at % width;
        I channel = tap % c, l = tap / c % kw, k = tap / (c * kw);
        I row = m / ow % oh * stride + k - pad, column = m % ow * stride + l - pad, n = m / (ow * oh);
        bool inside = tap < taps && row >= 0 && row < h && column >= 0 && column < w;
        const T *from = x + ((n * h + row) * w + column) * c + channel;
        for (I e = 0; e < run; ++e) out[at + e] = inside ? from[e] : T(tap + e == taps);
    }
}

/* The adjoint: each pixel of the map gathers what was copied from it. */
extern "C" __global__ void col2im(I size, const T *in, T *x, I h, I w, I c, I oh, I ow, I kh, I kw, I stride, I pad,
                                  I run) {
    EACH(i, size) {
        I at = i * run, channel = at % c, column = at / c % w, row = at / (c * w) % h, n = at / (c * w * h);
        T sum[4] = {};
        for (I k = 0; k < kh; ++k) {
            I a = row + pad - k;
            if (a < 0 || a % stride || a / stride >= oh) continue;
            for (I l = 0; l < kw; ++l) {
                I b = column + pad - l;
                if (b < 0 || b % stride || b / stride >= ow) continue;
                const T *from = in + ((((n * oh + a / stride) * ow + b / stride) * kh + k) * kw + l) * c + channel;
                for (I e = 0; e < run; ++e) sum[e] += from[e];
            }
        }
        for (I e = 0; e < run; ++e) x[at + e] = sum[e];
    }
}

/* y[n, pixel, o] += b[o] + plus, plus[i] being of this place, or of this image and channel where by_image = 1 */
extern "C" __global__ void add_bias(I size, T *y, const T *b, const T *plus, I pixels, I o, I has_plus, I by_image) {
    EACH(i, size) {
        T sum = y[i] + b[i % o];
        y[i] = has_plus ? sum + plus[by_image ? i / (pixels * o) * o + i % o : i] : sum;
    }
}

/* y = x w + b for so few rows that one thread a result is soon done: no second launch for b */
extern "C" __global__ void linear(I size, const T *x, const T *w, const T *b, T *y, I width, I o) {
    EACH(i, size) {
        T sum = 0;
        for (I k = 0; k < width; ++k) sum += x[i / o * width + k] * w[k * o + i % o];
        y[i] = sum + b[i % o];
    }
}

/* [dw; db] = [x, 1]^T g of the same */
extern "C" __global__ void linear_gradient(I size, const T *x, const T *g, T *dw, I rows, I width, I o) {
    EACH(i, size) {
        T sum = 0;
        I k = i / o;
        for (I m = 0; m < rows; ++m) sum += k < width ? x[m * width + k] * g[m * o + i % o] : g[m * o + i % o];
        dw[i] = sum;
    }
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

/* For each image's group of channels: z = gamma (x - mean) rstd + beta, and silu(z) where silu = 1.  The variance is the
   mean of the squared deviations from the mean, see ops/norm.py. */
extern "C" __global__ void group_norm(I size, const T *x, const T *gamma, const T *beta, T *mean, T *rstd, T *y,
                                      I pixels, I c, I groups, double eps, I silu) {
    BLOCKS(j, size) {
        I width = c / groups, count = pixels * width, first = j % groups * width, image = j / groups * pixels * c;
        T sum = 0, square = 0;
        LANES(m, count) sum += x[image + m / width * c + first + m % width];
        T level = total(sum) / T(count);
        LANES(m, count) {
            T centred = x[image + m / width * c + first + m % width] - level;
            square += centred * centred;
        }
        T scale = T(1) / sqrt(total(square) / T(count) + T(eps));
        if (LANE == 0) {
            mean[j] = level;
            rstd[j] = scale;
        }
        LANES(m, count) {
            I k = first + m % width, i = image + m / width * c + k;
            T z = gamma[k] * ((x[i] - level) * scale) + beta[k];
            y[i] = silu ? T(0.5) * z * (T(1) + tanh(T(0.5) * z)) : z;
        }
    }
}

/* dz: the derivative of z's activation, times g, at i in channel k; x_hat = (x - mean) rstd */
#define BEHIND(i, k) \
    T x_hat = (x[i] - mean[j]) * rstd[j], z = gamma[k] * x_hat + beta[k], t = T(1) + tanh(T(0.5) * z); \
    T dz = silu ? g[i] * T(0.5) * t * (T(1) + T(0.5) * z * (T(2) - t)) : g[i]

/* dx = rstd (gamma dz - mean(gamma dz) - x_hat mean(gamma dz x_hat)), means over the group; and each image's share of
   dgamma and dbeta, (n, 2, c) */
extern "C" __global__ void group_norm_backward(I size, const T *x, const T *g, const T *mean, const T *rstd,
        const T *gamma, const T *beta, T *dx, T *shares, I pixels, I c, I groups, I silu) {
    BLOCKS(j, size) {
        I width = c / groups, count = pixels * width, first = j % groups * width, n = j / groups;
        T along = 0, level = 0;
        for (I k = first; k < first + width; ++k) {
            T scale = 0, shift = 0;
            LANES(m, pixels) {
                I i = (n * pixels + m) * c + k;
                BEHIND(i, k);
                scale += dz * x_hat;
                shift += dz;
            }
            scale = total(scale);
            shift = total(shift);
            if (LANE == 0) {
                shares[n * 2 * c + k] = scale;
                shares[n * 2 * c + c + k] = shift;
            }
            along += gamma[k] * scale / T(count);
            level += gamma[k] * shift / T(count);
        }
        LANES(m, count) {
            I k = first + m % width, i = (n * pixels + m / width) * c + k;
            BEHIND(i, k);
            dx[i] = rstd[j] * (gamma[k] * dz - level - x_hat * along);
        }
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
    long long end[PARTS];
};

/* out = the arrays end to end, 0 where one lies nowhere */
extern "C" __global__ void gather(I size, T *out, Parts parts, I count) {
    EACH(i, size) {
        I first = 0, last = count - 1;  // the array with number i is one of these
        while (first < last) {
            I middle = (first + last) / 2;
            if (i < parts.end[middle]) last = middle; else first = middle + 1;
        }
        out[i] = parts.at[first] ? parts.at[first][i - (first ? I(parts.end[first - 1]) : 0)] : T(0);
    }
}
