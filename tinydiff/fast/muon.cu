// Muon's step for the matrices of a network, see muon.py of the book: one launch, a block of threads for each matrix.
//
// kernels.py appends this text to kernels.cu.  A matrix is as long as its larger side; its smaller side is `side`.
// Every large product is computed in tiles: each lane keeps N x N results in registers, and the factors pass through
// shared memory, DEEP numbers of each sum at a time.  The square matrices of the rounds lie in device memory.

#define ACROSS (THREADS < 16 ? THREADS : I(16))  // lanes side by side in a tile
#define DOWN (THREADS / ACROSS)
#define DEEP I(16)

/* to[k][i] = f(k, i) for k < depth and i < width, else 0: DEEP rows of N LANES numbers, and four more, so that lanes
   write to several banks.  along_k: neighbours in memory have neighbouring k, not i; lanes side by side read those. */
template <I N, I LANES, class F> __device__ void stage(Four *to, I width, I depth, bool along_k, F f) {
    const I count = DEEP * N * LANES / THREADS;
    T value[count];  // all loads are under way before the first number is written
    for (I t = 0; t < count; ++t) {
        I e = t * THREADS + LANE, k = along_k ? e % DEEP : e / (N * LANES), i = along_k ? e / DEEP : e % (N * LANES);
        value[t] = k < depth && i < width ? f(k, i) : T(0);
    }
    for (I t = 0; t < count; ++t) {
        I e = t * THREADS + LANE, k = along_k ? e % DEEP : e / (N * LANES), i = along_k ? e / DEEP : e % (N * LANES);
        to[k * (N * LANES / 4 + 1) + i / 4].v[i % 4] = value[t];
    }
}

/* put(i, j, sum of a(k, i) b(k, j) over k < depth) for i < rows and j < columns.  along_a, along_b: see stage. */
template <I N, class A, class B, class Put>
__device__ void multiply(Four *left, Four *right, I rows, I columns, I depth, bool along_a, bool along_b, A a, B b,
                         Put put) {
    const I down = LANE / ACROSS, across = LANE % ACROSS;
    for (I top = 0; top < rows; top += N * DOWN)
        for (I first = 0; first < columns; first += N * ACROSS) {
            T sum[N][N] = {};
            for (I deep = 0; deep < depth; deep += DEEP) {
                stage<N, DOWN>(left, rows - top, depth - deep, along_a, [&](I k, I i) { return a(deep + k, top + i); });
                stage<N, ACROSS>(right, columns - first, depth - deep, along_b,
                                 [&](I k, I j) { return b(deep + k, first + j); });
                __syncthreads();
                for (I k = 0; k < DEEP; ++k) {
                    Four x[N / 4], y[N / 4];
                    for (I h = 0; h < N / 4; ++h) {
                        x[h] = left[k * (N * DOWN / 4 + 1) + h * DOWN + down];
                        y[h] = right[k * (N * ACROSS / 4 + 1) + h * ACROSS + across];
                    }
                    for (I i = 0; i < N; ++i)
                        for (I j = 0; j < N; ++j) sum[i][j] += x[i / 4].v[i % 4] * y[j / 4].v[j % 4];
                }
                __syncthreads();  // before the next numbers are written there
            }
            for (I i = 0; i < N; ++i)
                for (I j = 0; j < N; ++j) {
                    I row = top + 4 * (i / 4 * DOWN + down) + i % 4, column = first + 4 * (j / 4 * ACROSS + across) + j % 4;
                    if (row < rows && column < columns) put(row, column, sum[i][j]);
                }
        }
    __syncthreads();  // every lane sees what all have put
}

/* put(l, s, number of O(X)) for the matrix x(l, s), l < length and s < side.  r: room for four square matrices. */
template <I N, class X, class Put>
__device__ void orthogonalize(Four *left, Four *right, T *r, I length, I side, bool along, double a, double b, double c,
                              I rounds, X x, Put put) {
    T *z = r + side * side, *product = z + side * side, *spare = product + side * side, trace = 0;
    auto write = [&](T *to) { return [=](I i, I j, T sum) { to[i * side + j] = sum; }; };
    auto rows_of = [&](const T *from) { return [=](I k, I i) { return from[i * side + k]; }; };
    auto columns_of = [&](const T *from) { return [=](I k, I j) { return from[k * side + j]; }; };
    multiply<N>(left, right, side, side, length, along, along, x, x, write(r));
    for (I i = LANE; i < side; i += THREADS) trace += r[i * side + i];
    const T scale = T(1) / (sqrt(total(trace)) + T(1e-20));  // 1 / |x|
    for (I e = LANE; e < side * side; e += THREADS) {
        r[e] = r[e] * scale * scale;
        product[e] = T(e / side == e % side);
    }
    __syncthreads();
    for (I round = 1; round <= rounds; ++round) {
        multiply<N>(left, right, side, side, side, true, false, rows_of(r), columns_of(r), [&](I i, I j, T sum) {
            z[i * side + j] = T(i == j) * T(a) + T(b) * r[i * side + j] + T(c) * sum;
        });
        multiply<N>(left, right, side, side, side, true, false, rows_of(product), columns_of(z), write(spare));
        T *next = spare;
        spare = product;
        product = next;
        if (round == rounds) break;
        multiply<N>(left, right, side, side, side, true, false, rows_of(z), columns_of(r), write(spare));
        multiply<N>(left, right, side, side, side, true, false, rows_of(spare), columns_of(z), write(r));
    }
    multiply<N>(left, right, length, side, side, !along, false, [&](I k, I l) { return x(l, k); }, columns_of(product),
                [&](I l, I s, T sum) { put(l, s, scale * sum); });
}

/* Where each matrix begins in theta, before, g and m. */
struct Matrices {
    long long start[PARTS];
    int rows[PARTS], columns[PARTS];
};

/* theta = before - lr 0.2 sqrt(max(rows, columns)) O(N), N = (1 - beta) g + beta m, for each matrix; nothing where the
   gradient's norm or lr is not finite.  room: numbers of scratch for a matrix. */
extern "C" __global__ void muon(I size, T *theta, const T *before, const T *g, const T *m, T *scratch, const T *norm,
                                const T *lr, Matrices matrices, I room, double beta, double a, double b, double c,
                                I rounds) {
    __shared__ Four left[DEEP * (2 * DOWN + 1)], right[DEEP * (2 * ACROSS + 1)];
    if (!FINITE(*norm + *lr)) return;
    BLOCKS(j, size) {
        const I rows = matrices.rows[j], columns = matrices.columns[j], start = I(matrices.start[j]);
        const bool wide = rows < columns;
        const I length = wide ? columns : rows, side = wide ? rows : columns;
        const T step = *lr * T(0.2) * sqrt(T(length));
        auto at = [=](I l, I s) { return start + (wide ? s * columns + l : l * columns + s); };
        auto x = [=](I l, I s) { return T(1 - beta) * g[at(l, s)] + T(beta) * m[at(l, s)]; };
        auto put = [=](I l, I s, T o) { theta[at(l, s)] = before[at(l, s)] - step * o; };
        T *r = scratch + j * room;
        if (side > 4 * ACROSS) orthogonalize<8>(left, right, r, length, side, wide, a, b, c, rounds, x, put);
        else orthogonalize<4>(left, right, r, length, side, wide, a, b, c, rounds, x, put);
    }
}
