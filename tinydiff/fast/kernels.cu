// The kernels that kernels.py launches, in two kinds.
//
//     EACH(i, size)     independent results, one thread each
//     BLOCKS(j, size)   independent results, a block of threads each: its lanes share the work and add up what they
//                       found by total(value); all of them pass each total
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

/* The sum over the lanes whose number leaves the same rest by `wide`, for the lanes below that. */
__device__ T total_of_column(T value, I wide) {
    __shared__ T part[THREADS];
    part[LANE] = value;
    __syncthreads();
    T sum = 0;
    if (LANE < wide)
        for (I l = LANE; l < THREADS; l += wide) sum += part[l];
    __syncthreads();  // before the next call writes there
    return sum;
}

/* Memory moves fastest in pieces of 16 bytes: where addresses and channels allow it a thread does `run` = 4 neighbours,
   else 1, and the other three are not looked at. */
struct alignas(16) Four {
    T v[4];
};

__device__ Four take(const T *from, I run) {
    Four four = {};
    if (run == 4) four = *(const Four *)from;
    else four.v[0] = *from;
    return four;
}

__device__ void put(T *to, Four four, I run) {
    if (run == 4) *(Four *)to = four;
    else *to = four.v[0];
}

/* out[m] = the taps (k, l, c) of the window of output pixel m = (n, row, column), 0 outside the map; after the taps,
   where a row is wider, a 1 and then zeros.  A thread finds its place once for a channel of all taps: divisions cost
   more here than memory. */
extern "C" __global__ void im2col(I size, const T *x, T *out, I h, I w, I c, I oh, I ow, I kh, I kw, I stride, I pad,
                                  I width, I run) {
    EACH(i, size) {
        I each = c / run, m = i / each, channel = i % each * run, taps = kh * kw * c;
        I top = m / ow % oh * stride - pad, left = m % ow * stride - pad;
        const T *image = x + m / (ow * oh) * h * w * c + channel;
        T *to = out + m * width;
        for (I k = 0; k < kh; ++k)
            for (I l = 0; l < kw; ++l) {
                I row = top + k, column = left + l;
                bool inside = row >= 0 && row < h && column >= 0 && column < w;
                put(to + (k * kw + l) * c + channel, inside ? take(image + (row * w + column) * c, run) : Four{}, run);
            }
        if (channel == 0)
            for (I e = taps; e < width; ++e) to[e] = T(e == taps);
    }
}

/* The adjoint: each pixel of the map gathers what was copied from it, by the windows (a, b) that it lies in. */
extern "C" __global__ void col2im(I size, const T *in, T *x, I h, I w, I c, I oh, I ow, I kh, I kw, I stride, I pad,
                                  I run) {
    EACH(i, size) {
        I each = c / run, pixel = i / each, channel = i % each * run;
        I row = pixel / w % h + pad, column = pixel % w + pad, n = pixel / (w * h);
        Four sum = {};
        for (I a = row < kh ? 0 : (row - kh) / stride + 1; a < oh && a * stride <= row; ++a)
            for (I b = column < kw ? 0 : (column - kw) / stride + 1; b < ow && b * stride <= column; ++b) {
                I tap = (row - a * stride) * kw + column - b * stride;
                Four more = take(in + (((n * oh + a) * ow + b) * kh * kw + tap) * c + channel, run);
                for (I e = 0; e < 4; ++e) sum.v[e] += more.v[e];
            }
        put(x + i * run, sum, run);
    }
}

/* y[n, pixel, o] += b[o] + plus, plus[i] being of this place, or of this image and channel where by_image = 1 */
extern "C" __global__ void add_bias(I size, T *y, const T *b, const T *plus, I pixels, I o, I has_plus, I by_image,
                                    I run) {
    EACH(i, size) {
        I at = i * run, k = at % o;
        Four sum = take(y + at, run), bias = take(b + k, run);
        Four more = take(plus + (by_image ? at / (pixels * o) * o + k : at), run);
        for (I e = 0; e < 4; ++e) sum.v[e] += bias.v[e];
        for (I e = 0; e < 4 && has_plus; ++e) sum.v[e] += more.v[e];
        put(y + at, sum, run);
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

/* All gradients of the same: [dw; db] = [x, 1]^T g, and dx = g w^T */
extern "C" __global__ void linear_backward(I size, const T *x, const T *w, const T *g, T *dw, T *dx, I rows, I width,
                                           I o) {
    EACH(i, size) {
        T sum = 0;
        I e = i - (width + 1) * o, k = e < 0 ? i / o : e % width;
        if (e < 0)
            for (I m = 0; m < rows; ++m) sum += k < width ? x[m * width + k] * g[m * o + i % o] : g[m * o + i % o];
        else
            for (I j = 0; j < o; ++j) sum += g[e / width * o + j] * w[k * o + j];
        *(e < 0 ? dw + i : dx + e) = sum;
    }
}

/* out = scale a b for each image and head, matrices (m, k) and (k, n).  strides: where the numbers of a, b and out lie,
   by image, head, row and column */
struct Strides {
    long long a[4], b[4], out[4];
};

extern "C" __global__ void product(I size, const T *a, const T *b, T *out, I heads, I m, I k, I n, Strides strides,
                                   double scale) {
    EACH(i, size) {
        I column = i % n, row = i / n % m, head = i / (n * m) % heads, image = i / (n * m * heads);
        const T *from = a + image * strides.a[0] + head * strides.a[1] + row * strides.a[2];
        const T *with = b + image * strides.b[0] + head * strides.b[1] + column * strides.b[3];
        T sum = 0;
        for (I l = 0; l < k; ++l) sum += from[l * strides.a[3]] * with[l * strides.b[2]];
        out[image * strides.out[0] + head * strides.out[1] + row * strides.out[2] + column * strides.out[3]] =
            T(scale) * sum;
    }
}

/* dx[row] = the sum of g[m] over the places m at which `indices` has picked this row of x */
extern "C" __global__ void take_gradient(I size, const T *g, const long long *indices, T *dx, I picks, I width) {
    EACH(i, size) {
        T sum = 0;
        for (I m = 0; m < picks; ++m)
            if (indices[m] == i / width) sum += g[m * width + i % width];
        dx[i] = sum;
    }
}

/* out[b, s, o] = sum of x[b, m, o] over the segment s of 0..rows-1.  A block takes up to 32 channels of a segment. */
extern "C" __global__ void sum_segments(I size, const T *x, T *out, I rows, I segments, I o, I tiles) {
    BLOCKS(j, size) {
        I first = j % tiles * 32, s = j / tiles % segments, b = j / (tiles * segments);
        I width = o - first < 32 ? o - first : 32, wide = width < THREADS ? width : THREADS, count = THREADS / wide;
        for (I k = first + LANE % wide; k < first + (width + wide - 1) / wide * wide; k += wide) {
            T sum = 0;
            if (k < first + width && LANE < count * wide)
                for (I m = rows * s / segments + LANE / wide; m < rows * (s + 1) / segments; m += count)
                    sum += x[(b * rows + m) * o + k];
            sum = total_of_column(sum, wide);
            if (LANE < wide && k < first + width) out[(b * segments + s) * o + k] = sum;
        }
    }
}

/* A group's channels k, neighbours in memory, belong to lanes side by side; rows of such lanes share its pixels m. */
#define GROUP(j) \
    I width = c / groups, count = pixels * width, first = j % groups * width, image = j / groups * pixels * c; \
    I wide = width < THREADS ? width : THREADS, rows = THREADS / wide, row = LANE < rows * wide ? LANE / wide : pixels
#define CHANNELS(k) for (I k = first + LANE % wide; k < first + width; k += wide)
#define PIXELS(m) for (I m = row; m < pixels; m += rows)

/* For each image's group of channels: z = gamma (x - mean) rstd + beta, and silu(z) where silu = 1.  The variance is the
   mean of the squared deviations from the mean, see ops/norm.py. */
extern "C" __global__ void group_norm(I size, const T *x, const T *gamma, const T *beta, T *mean, T *rstd, T *y,
                                      I pixels, I c, I groups, double eps, I silu) {
    BLOCKS(j, size) {
        GROUP(j);
        T sum = 0, square = 0;
        CHANNELS(k) PIXELS(m) sum += x[image + m * c + k];
        T level = total(sum) / T(count);
        CHANNELS(k) PIXELS(m) {
            T centred = x[image + m * c + k] - level;
            square += centred * centred;
        }
        T scale = T(1) / sqrt(total(square) / T(count) + T(eps));
        if (LANE == 0) {
            mean[j] = level;
            rstd[j] = scale;
        }
        CHANNELS(k) PIXELS(m) {
            I i = image + m * c + k;
            T z = gamma[k] * ((x[i] - level) * scale) + beta[k];
            y[i] = silu ? T(0.5) * z * (T(1) + tanh(T(0.5) * z)) : z;
        }
    }
}

/* dz: the derivative of z's activation, times g, at i in channel k; x_hat = (x - mean) rstd */
#define BEHIND(i, k) \
    T x_hat = (x[i] - mean[j]) * rstd[j], z = gamma[k] * x_hat + beta[k], t = T(1) + tanh(T(0.5) * z); \
    T dz = silu ? g[i] * T(0.5) * t * (T(1) + T(0.5) * z * (T(2) - t)) : g[i]

/* dx = rstd (gamma dz - mean(gamma dz) - x_hat mean(gamma dz x_hat)), means over the group, and plus, if not null; and
   each image's share of dgamma and dbeta, (n, 2, c) */
extern "C" __global__ void group_norm_backward(I size, const T *x, const T *g, const T *mean, const T *rstd,
        const T *gamma, const T *beta, const T *plus, T *dx, T *shares, I pixels, I c, I groups, I silu) {
    BLOCKS(j, size) {
        GROUP(j);
        T along = 0, level = 0, *share = shares + j / groups * 2 * c;
        for (I done = 0; done < width; done += wide) {  // all lanes meet in the sums
            I k = first + done + LANE % wide;
            bool ours = k < first + width;
            T scale = 0, shift = 0;
            if (ours) PIXELS(m) {
                I i = image + m * c + k;
                BEHIND(i, k);
                scale += dz * x_hat;
                shift += dz;
            }
            scale = total_of_column(scale, wide);
            shift = total_of_column(shift, wide);
            if (LANE < wide && ours) {
                share[k] = scale;
                share[c + k] = shift;
                along += gamma[k] * scale;
                level += gamma[k] * shift;
            }
        }
        along = total(along) / T(count);
        level = total(level) / T(count);
        CHANNELS(k) PIXELS(m) {
            I i = image + m * c + k;
            BEHIND(i, k);
            dx[i] = rstd[j] * (gamma[k] * dz - level - x_hat * along) + (plus ? plus[i] : T(0));
        }
    }
}

/* out[m] = [a[m], b[m]] for rows of c and d numbers, or back from out where split = 1 */
extern "C" __global__ void concat(I size, T *a, T *b, T *out, I c, I d, I split, I run) {
    EACH(i, size) {
        I at = i * run, m = at / (c + d), k = at % (c + d);
        T *part = k < c ? a + m * c + k : b + m * d + k - c;
        if (split) put(part, take(out + at, run), run); else put(out + at, take(part, run), run);
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

/* Adam with both bias corrections folded into the numbers rate and eps, see optim.py.  They lie on the device, so that a
   recorded launch reads those of its step.  Nothing where the gradient's norm or the rate is not finite. */
extern "C" __global__ void adam(I size, T *theta, const T *g, T *m, T *v, const T *norm, const T *numbers, double beta1,
                                double beta2) {
    if (!FINITE(*norm + *numbers)) return;
    EACH(i, size) {
        m[i] = T(beta1) * m[i] + T(1 - beta1) * g[i];
        v[i] = T(beta2) * v[i] + T(1 - beta2) * g[i] * g[i];
        theta[i] -= numbers[0] * m[i] / (sqrt(v[i]) + numbers[1]);
    }
}

/* average += rest (theta - average), under the same condition */
extern "C" __global__ void ema(I size, T *average, const T *theta, const T *norm, const T *rest) {
    if (!FINITE(*norm + *rest)) return;
    EACH(i, size) average[i] += *rest * (theta[i] - average[i]);
}

/* part[j] = the sum of every size-th block of squares of g, from the j-th on */
extern "C" __global__ void squares(I size, const T *g, T *part, I length) {
    BLOCKS(j, size) {
        T sum = 0;
        for (I i = j * THREADS + LANE; i < length; i += size * THREADS) sum += g[i] * g[i];
        sum = total(sum);
        if (LANE == 0) part[j] = sum;
    }
}

/* norm = sqrt(sum of the parts); g is scaled to max_norm where its norm is larger and finite */
extern "C" __global__ void clip(I size, T *g, const T *part, T *norm, I parts, double max_norm) {
    T found = 0;
    for (I k = LANE; k < parts; k += THREADS) found += part[k];
    found = sqrt(total(found));
    EACH(i, size) {
        if (i == 0) *norm = found;
        if (found > T(max_norm) && FINITE(found)) g[i] *= T(max_norm) / found;
    }
}

/* Where some arrays lie, and where each ends once they lie end to end: passed by value, within the 4,096 bytes for all
   of a kernel's arguments.  An array may come as `count` shares, which are `stride` numbers apart. */
#define PARTS 160
struct Parts {
    const T *at[PARTS];
    long long end[PARTS];
    int count[PARTS], stride[PARTS];
};

/* out = the arrays end to end, each the sum of its shares; 0 where one lies nowhere */
extern "C" __global__ void gather(I size, T *out, Parts parts, I arrays) {
    EACH(i, size) {
        I first = 0, last = arrays - 1;  // the array with number i is one of these
        while (first < last) {
            I middle = (first + last) / 2;
            if (i < parts.end[middle]) last = middle; else first = middle + 1;
        }
        const T *from = parts.at[first] + (i - (first ? I(parts.end[first - 1]) : 0));
        T sum = 0;
        if (parts.at[first])
            for (I s = 0; s < parts.count[first]; ++s) sum += from[(long long)s * parts.stride[first]];
        out[i] = sum;
    }
}
