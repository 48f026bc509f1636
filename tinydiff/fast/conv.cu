// Convolutions and matrix products on tensor cores, which tensor_cores.py launches.
//
//     conv          y[m, o] = b[o] + plus + sum over taps and channels of x[m + shift(tap), c] w[tap, c, o]
//     conv_filter   dw[tap, c, o] = sum over pixels m of x[m + shift(tap), c] g[m, o],    db[o] = sum over m of g[m, o]
//
// m counts the pixels of all maps (N, H, W, C) in one row.  A block copies neighbouring pixels with all their neighbours
// to shared memory, SLAB channels at a time.  Each tap is then a product of these rows, shifted, with a matrix.  If the
// neighbour of a pixel lies outside the image, a row of zeros is read instead.  So no columns are written, and a 1x1
// filter makes conv a matrix product.
//
// A warp multiplies by mma: D (16 x 8) += A (16 x DEPTH) B (DEPTH x 8).  Lane 4 g + t holds D at the rows g, g + 8 and
// the columns 2 t, 2 t + 1, A at the rows g, g + 8, and B at the column g.  Along the depth it holds t, t + 4, ...: in
// TF32 this is the order of the hardware; in bf16 the hardware has another order, and A and B have the same other order,
// which changes no sum.  The lines in shared memory have lengths for which the 32 lanes read 32 different banks.
//
// PRECISION says how the factors of a product are rounded; sums are float32.  FLOAT32 cuts each factor into two TF32
// parts and leaves out the product of the two small parts: three products instead of one.  Sums run in one order: no
// atomics, the same bits every time.
#define FLOAT32 0
#define TF32 1
#define BF16 2
#define DEPTH (PRECISION == BF16 ? 16 : 8)
#define SLAB 32        // channels in shared memory at a time
#define WARPS 4        // of a block of conv
#define CHUNK 64       // pixels in shared memory at a time, in conv_filter
#define TAPS 9         // warps of a block of conv_filter: one for each tap, or nine for the one tap
#define LINE (SLAB + 4)  // numbers in a line of shared memory, if lanes side by side read lines side by side
#define LONG (SLAB + 8)  // the same, if they read numbers side by side

#ifdef __CUDACC__  // NVRTC defines it
__device__ unsigned tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
}

__device__ unsigned bf16(float low, float high) {
    unsigned bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

#if PRECISION == BF16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
#define MMA "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
#endif
__device__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm(MMA "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Start to copy four numbers to shared memory, or four zeros.  They are there after `arrived`. */
__device__ void fetch(float *to, const float *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(inside ? 16 : 0));
}

/* Wait until all copies of all threads of the block are there. */
__device__ void arrived() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

extern __shared__ __align__(16) float shared[];
#endif

/* What a lane holds of a factor A (N = 4) or B (N = 2). */
template <int N> struct Fragment {
    unsigned big[N], small[N];
};

/* value(e, k): the lane's number of row g + 8 e (for B of the column g) at t + 4 k along the depth. */
template <int N, class F> __device__ void fill(Fragment<N> &f, F value) {
    #pragma unroll
    for (int i = 0; i < N; ++i) {
        int e = N == 4 ? i % 2 : 0, k = (N == 4 ? i / 2 : i) * (DEPTH / 8);
        float first = value(e, k);
        f.big[i] = PRECISION == BF16 ? bf16(first, value(e, k + 1)) : tf32(first);
        if (PRECISION == FLOAT32) f.small[i] = tf32(first - __uint_as_float(f.big[i]));
    }
}

__device__ void multiply(float (&d)[4], const Fragment<4> &a, const Fragment<2> &b) {
    if (PRECISION == FLOAT32) {
        mma(d, a.small, b.big);
        mma(d, a.big, b.small);
    }
    mma(d, a.big, b.big);
}

/* Start to copy `count` rows, from the row `first` on, of a matrix (rows, width) to shared memory: N columns from the
   column `from` on.  What lies outside the matrix is 0. */
template <int N>
__device__ void tile(float *to, int line, const float *x, int first, int count, int rows, int width, int from) {
    bool quick = width % 4 == 0 && (unsigned long long)x % 16 == 0;  // rows begin at multiples of 16 bytes
    #pragma unroll 2
    for (int i = threadIdx.x; i < count * (N / 4); i += blockDim.x) {
        int row = i / (N / 4), r = first + row, k = from + i % (N / 4) * 4;
        float *at = to + row * line + k - from;
        bool inside = r >= 0 && r < rows;
        if (quick) fetch(at, x + (inside && k < width ? r * width + k : 0), inside && k < width);
        else for (int e = 0; e < 4; ++e) at[e] = inside && k + e < width ? x[r * width + k + e] : 0;
    }
}

/* Bit `tap` of the result: whether that neighbour of pixel m lies in the image. */
__device__ int neighbours(int m, int h, int w, int k) {
    int row = m / w % h, column = m % w, bits = 0;
    #pragma unroll 1
    for (int tap = 0; tap < k * k; ++tap) {
        int i = row + tap / k - k / 2, j = column + tap % k - k / 2;
        bits |= (i >= 0 && i < h && j >= 0 && j < w) << tap;
    }
    return bits;
}

/* A block computes 64 MT pixels of NT x 8 output channels.  k x k taps, k odd, stride 1; the size of the map stays.
   BACK: the gradient of x from the gradient of y, which takes the place of x; w is then (k, k, o, c), and its taps are
   read in reverse.  plus: null, a map like y, or (N, O) where by_image = 1.  places: 2 where the next slab of x is
   copied while this one is multiplied, else 1. */
template <int MT, int NT, bool BACK>
__device__ void conv(const float *x, const float *w, const float *b, const float *plus, float *y, int pixels, int h,
                     int width, int c, int o, int k, int places, int by_image) {
    const int each = WARPS * MT * 16, reach = k / 2 * (width + 1), taps = k * k, rows = each + 2 * reach;
    const int wide = BACK ? LINE : NT * 8 + 8, size = (BACK ? NT * 8 : SLAB) * wide;
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, row = threadIdx.x / 32 * MT * 16 + g;
    int first = blockIdx.x * each, o0 = blockIdx.y * NT * 8, steps = (c + SLAB - 1) / SLAB * taps;
    float *zeros = shared, *maps = zeros + LINE, *filters = maps + places * rows * LINE;
    float sum[MT][NT][4] = {};
    int inside[MT][2];
    for (int i = 0; i < MT; ++i)
        for (int e = 0; e < 2; ++e) inside[i][e] = neighbours(first + row + i * 16 + e * 8, h, width, k);
    for (int e = threadIdx.x; e < LINE; e += blockDim.x) zeros[e] = 0;
    auto load = [&](int step) {  // of the next tap the matrix, and before the first tap a slab of the map
        int slab = step / taps * SLAB, tap = step % taps;
        float *map = maps + step / taps % places * rows * LINE, *filter = filters + step % 2 * size;
        if (tap == 0) tile<SLAB>(map, LINE, x, first - reach, rows, pixels, c, slab);
        if (BACK) tile<SLAB>(filter, wide, w + (taps - 1 - tap) * o * c, o0, NT * 8, o, c, slab);
        else tile<NT * 8>(filter, wide, w + tap * c * o, slab, SLAB, c, o, o0);
    };
    load(0);
    for (int step = 0; step < steps; ++step) {
        arrived();
        bool later = places == 1 && step % taps == taps - 1;  // the next slab takes the place of this one
        if (step + 1 < steps && !later) load(step + 1);
        int slab = step / taps * SLAB, tap = step % taps, shift = reach + (tap / k - k / 2) * width + tap % k - k / 2;
        const float *map = maps + step / taps % places * rows * LINE, *filter = filters + step % 2 * size, *from[MT][2];
        for (int i = 0; i < MT; ++i)
            for (int e = 0; e < 2; ++e)
                from[i][e] = (inside[i][e] >> tap & 1 ? map + (row + i * 16 + e * 8 + shift) * LINE : zeros) + t;
        #pragma unroll
        for (int q = 0; q < SLAB; q += DEPTH) {
            if (slab + q >= c) break;
            Fragment<2> bs[NT];
            #pragma unroll
            for (int n = 0; n < NT; ++n)
                fill(bs[n], [&](int, int j) {
                    int channel = q + t + 4 * j;
                    return filter[BACK ? (n * 8 + g) * wide + channel : channel * wide + n * 8 + g];
                });
            #pragma unroll
            for (int i = 0; i < MT; ++i) {
                Fragment<4> a;
                fill(a, [&](int e, int j) { return from[i][e][q + 4 * j]; });
                #pragma unroll
                for (int n = 0; n < NT; ++n) multiply(sum[i][n], a, bs[n]);
            }
        }
        if (step + 1 < steps && later) {
            __syncthreads();  // all warps have read the slab
            load(step + 1);
        }
    }
    __syncwarp();  // the host's mma adds up here
    #pragma unroll
    for (int i = 0; i < MT * 2; ++i) {
        int m = first + row + i * 8, extra = (by_image ? m / (h * width) : m) * o;
        if (m < pixels)
            #pragma unroll
            for (int e = 0; e < NT * 2; ++e) {
                int j = o0 + e / 2 * 8 + 2 * t + e % 2;
                float more = b && j < o ? b[j] : 0;
                if (plus && j < o) more += plus[extra + j];
                if (j < o) y[m * o + j] = sum[i / 2][e / 2][i % 2 * 2 + e % 2] + more;
            }
    }
}

/* out[share, (k, k, c, o) and then o]: the gradients of w and b, each the sum over the chunks share, share + gridDim.x,
   ... of the pixels.  A block computes SLAB channels of x and NT x 8 of g; each of its nine warps takes a tap.  With one
   tap the warps share the pixels, and the last warp adds up what they found. */
template <int NT>
__device__ void conv_filter(const float *x, const float *gy, float *out, int pixels, int h, int width, int c, int o,
                            int k) {
    const int taps = k * k, reach = k / 2 * (width + 1), rows = CHUNK + 2 * reach, wide = NT * 8 + 8;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, phases = TAPS / taps;
    int tap = warp % taps, phase = warp / taps, slab = blockIdx.y * SLAB, o0 = blockIdx.z * NT * 8;
    int shift = reach + (tap / k - k / 2) * width + tap % k - k / 2, chunks = (pixels + CHUNK - 1) / CHUNK;
    float *zeros = shared, *places = zeros + LONG, sum[2][NT][4] = {}, bias = 0;
    const int size = rows * LONG + CHUNK * wide + CHUNK;  // of a place: a slab of x, the same pixels of g, neighbours
    for (int e = threadIdx.x; e < LONG; e += blockDim.x) zeros[e] = 0;
    auto load = [&](int chunk, float *map) {
        float *grad = map + rows * LONG;
        int *inside = (int *)(grad + CHUNK * wide), first = chunk * CHUNK;
        tile<SLAB>(map, LONG, x, first - reach, rows, pixels, c, slab);
        tile<NT * 8>(grad, wide, gy, first, CHUNK, pixels, o, o0);
        for (int m = threadIdx.x; m < CHUNK; m += blockDim.x) inside[m] = neighbours(first + m, h, width, k);
    };
    load(blockIdx.x, places);
    for (int chunk = blockIdx.x, place = 0; chunk < chunks; chunk += gridDim.x, place = 1 - place) {
        arrived();
        if (chunk + int(gridDim.x) < chunks) load(chunk + gridDim.x, places + (1 - place) * size);
        const float *map = places + place * size, *grad = map + rows * LONG;
        const int *inside = (const int *)(grad + CHUNK * wide);
        if (slab == 0 && threadIdx.x < NT * 8)
            for (int m = 0; m < CHUNK; ++m) bias += grad[m * wide + threadIdx.x];
        for (int q = phase * DEPTH; q < CHUNK; q += phases * DEPTH) {
            const float *from[DEPTH / 4];
            for (int j = 0; j < DEPTH / 4; ++j) {
                int m = q + t + 4 * j;
                from[j] = (inside[m] >> tap & 1 ? map + (m + shift) * LONG : zeros) + g;
            }
            Fragment<2> bs[NT];
            #pragma unroll
            for (int n = 0; n < NT; ++n) fill(bs[n], [&](int, int j) { return grad[(q + t + 4 * j) * wide + n * 8 + g]; });
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (slab + i * 16 >= c) break;
                Fragment<4> a;
                fill(a, [&](int e, int j) { return from[j][i * 16 + e * 8]; });
                #pragma unroll
                for (int n = 0; n < NT; ++n) multiply(sum[i][n], a, bs[n]);
            }
        }
    }
    out += blockIdx.x * (taps * c + 1) * o;
    if (slab == 0 && threadIdx.x < NT * 8 && o0 + int(threadIdx.x) < o) out[taps * c * o + o0 + threadIdx.x] = bias;
    for (int p = 0; p < phases; ++p) {
        __syncthreads();
        #pragma unroll
        for (int e = 0; e < NT * 8; ++e) {
            int i = e / 4 / NT, n = e / 4 % NT, channel = slab + i * 16 + e % 4 / 2 * 8 + g, j = o0 + n * 8 + 2 * t + e % 2;
            float *so_far = places + e * 32 + lane, value = sum[i][n][e % 4];
            if (phase == p && p > 0) value += *so_far;
            if (phase == p) *so_far = value;
            if (phase == p && p == phases - 1 && channel < c && j < o) out[(tap * c + channel) * o + j] = value;
        }
    }
}

#define ARRAYS const float *x, const float *w, const float *b, const float *plus, float *y
#define SIZES int pixels, int h, int width, int c, int o, int k
#define CONV(MT, NT, BACK) \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, MT > 1 ? 2 : 3) \
    conv_##MT##_##NT##_##BACK(ARRAYS, SIZES, int places, int by_image) { \
        conv<MT, NT, BACK>(x, w, b, plus, y, pixels, h, width, c, o, k, places, by_image); \
    }
#define FILTER(NT) \
    extern "C" __global__ void __launch_bounds__(TAPS * 32, NT > 4 ? 1 : 2) \
    conv_filter_##NT(const float *x, const float *g, float *out, SIZES) { \
        conv_filter<NT>(x, g, out, pixels, h, width, c, o, k); \
    }
CONV(1, 4, 0)
CONV(1, 8, 0)
CONV(4, 4, 0)
CONV(4, 8, 0)
CONV(1, 4, 1)
CONV(1, 8, 1)
CONV(4, 4, 1)
CONV(4, 8, 1)
FILTER(4)
FILTER(8)
