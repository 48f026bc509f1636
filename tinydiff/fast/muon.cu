// Muon's step for the matrices of a network, see muon.py of the book: one launch, a block of threads for each matrix.
//
// kernels.py appends this text to kernels.cu.  A matrix is `length` in its longer direction and `side` in the other.  A
// product is computed in tiles.  Each lane keeps N x N results of a tile in registers; the two factors pass through
// shared memory, DEEP terms of every sum at a time.  The square matrices of the rounds lie in device memory.

#define N I(8)
#define DEEP I(16)
#define ACROSS (THREADS < 16 ? THREADS : I(16))  // lanes side by side in a tile
#define DOWN (THREADS / ACROSS)
#define PITCH(lanes) (N * (lanes) / 4 + 1)  // Fours from one term to the next; one more, so lanes write to several banks

/* to[k][i] = f(k, i) for k < depth and i < width, else 0; DEEP rows of N LANES numbers.  along_k: f(k, i) and f(k + 1, i)
   are neighbours in memory, so lanes side by side read them; else f(k, i) and f(k, i + 1) are. */
template <I LANES, class F> __device__ void stage(Four *to, I width, I depth, bool along_k, F f) {
    const I count = DEEP * N * LANES / THREADS;
    T value[count];  // all loads are under way before the first number is written
    auto term = [=](I t) { return along_k ? (t * THREADS + LANE) % DEEP : (t * THREADS + LANE) / (N * LANES); };
    auto place = [=](I t) { return along_k ? (t * THREADS + LANE) / DEEP : (t * THREADS + LANE) % (N * LANES); };
    for (I t = 0; t < count; ++t) value[t] = term(t) < depth && place(t) < width ? f(term(t), place(t)) : T(0);
    for (I t = 0; t < count; ++t) to[term(t) * PITCH(LANES) + place(t) / 4].v[place(t) % 4] = value[t];
}

/* put(i, j, sum of a(k, i) b(k, j) over k < depth) for i < rows and j < columns.  along_a, along_b: see stage. */
template <class A, class B, class Put>
__device__ void multiply(Four *left, Four *right, I rows, I columns, I depth, bool along_a, bool along_b, A a, B b,
                         Put put) {
    const I down = LANE / ACROSS, across = LANE % ACROSS;
    for (I top = 0; top < rows; top += N * DOWN)
        for (I first = 0; first < columns; first += N * ACROSS) {
            T sum[N][N] = {};
            for (I deep = 0; deep < depth; deep += DEEP) {
                stage<DOWN>(left, rows - top, depth - deep, along_a, [&](I k, I i) { return a(deep + k, top + i); });
                stage<ACROSS>(right, columns - first, depth - deep, along_b,
                              [&](I k, I j) { return b(deep + k, first + j); });
                __syncthreads();
                for (I k = 0; k < DEEP; ++k) {
                    Four x[N / 4], y[N / 4];
                    for (I h = 0; h < N / 4; ++h) {
                        x[h] = left[k * PITCH(DOWN) + h * DOWN + down];
                        y[h] = right[k * PITCH(ACROSS) + h * ACROSS + across];
                    }
                    for (I i = 0; i < N; ++i)
                        for (I j = 0; j < N; ++j) sum[i][j] += x[i / 4].v[i % 4] * y[j / 4].v[j % 4];
                }
                __syncthreads();  // before the next terms are written there
            }
            for (I i = 0; i < N; ++i)
                for (I j = 0; j < N; ++j) {
                    I row = top + 4 * (i / 4 * DOWN + down) + i % 4, column = first + 4 * (j / 4 * ACROSS + across) + j % 4;
                    if (row < rows && column < columns) put(row, column, sum[i][j]);
                }
        }
    __syncthreads();  // every lane sees what all have put
}

/* Where each matrix begins in theta, before, g and m. */
struct Matrices {
    long long start[PARTS];
    int rows[PARTS], columns[PARTS];
};

/* theta = before - lr 0.2 sqrt(length) O(X), X = (1 - beta) g + beta m, for each matrix; nothing where the gradient's
   norm or lr is not finite.  room: numbers of scratch for a matrix, in which four squares lie. */
extern "C" __global__ void muon(I size, T *theta, const T *before, const T *g, const T *m, T *scratch, const T *norm,
                                const T *lr, Matrices matrices, I room, double beta, double a, double b, double c,
                                I rounds) {
    __shared__ Four left[DEEP * PITCH(DOWN)], right[DEEP * PITCH(ACROSS)];
    if (!FINITE(*norm + *lr)) return;
    BLOCKS(j, size) {
        const I rows = matrices.rows[j], columns = matrices.columns[j], start = I(matrices.start[j]);
        const bool wide = rows < columns;
        const I length = wide ? columns : rows, side = wide ? rows : columns, square = side * side;
        T *r = scratch + j * room, *z = r + square, *product = z + square, *spare = product + square, trace = 0;
        auto at = [=](I l, I s) { return start + (wide ? s * columns + l : l * columns + s); };
        auto x = [=](I l, I s) { return T(1 - beta) * g[at(l, s)] + T(beta) * m[at(l, s)]; };
        multiply(left, right, side, side, length, wide, wide, x, x, [=](I i, I k, T sum) { r[i * side + k] = sum; });
        for (I i = LANE; i < side; i += THREADS) trace += r[i * side + i];
        const T scale = T(1) / (sqrt(total(trace)) + T(1e-20));  // 1 / |X|
        for (I e = LANE; e < square; e += THREADS) {
            r[e] = r[e] * scale * scale;
            product[e] = T(e / side == e % side);
        }
        __syncthreads();
        // Four products a round: Z = A I + B R + C R R, product <- product Z, Z R, R <- (Z R) Z.  The last round needs two.
        for (I k = 0; k < 4 * rounds - 2; ++k) {
            const I which = k % 4;
            const T *from = which == 0 ? r : which == 1 ? product : which == 2 ? z : spare, *with = which % 2 ? z : r;
            T *to = which == 0 ? z : which == 3 ? r : spare;
            multiply(
                left, right, side, side, side, true, false, [=](I l, I i) { return from[i * side + l]; },
                [=](I l, I i) { return with[l * side + i]; },
                [=](I i, I l, T sum) {
                    I e = i * side + l;
                    to[e] = which ? sum : T(i == l) * T(a) + T(b) * r[e] + T(c) * sum;
                });
            if (which == 1) {
                spare = product;
                product = to;
            }
        }
        const T step = *lr * T(0.2) * sqrt(T(length)) * scale;
        multiply(
            left, right, length, side, side, !wide, false, [=](I s, I l) { return x(l, s); },
            [=](I k, I s) { return product[k * side + s]; },
            [=](I l, I s, T sum) { theta[at(l, s)] = before[at(l, s)] - step * sum; });
    }
}
