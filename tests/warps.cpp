// A GPU's blocks on one core of this machine, for the text of conv.cu, which emulate.py appends.
//
// Each thread of a block is a fiber with a stack of its own.  It runs until it must wait for others.  Which warp runs next
// is chosen at random, so a warp may be a whole stretch ahead of the others: a missing barrier shows.  Shared memory
// holds NaN at first, and so does the target of an asynchronous copy until the copy has been waited for.
//
// mma is a matter of a warp.  What it reads are numbers of the lanes; they are noted when a lane calls it, and the warp
// multiplies when its lanes meet next.  Until then no text may read the sums.
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <ucontext.h>
#include <vector>
#define __global__
#define __device__ static
#define __launch_bounds__(...)
struct Place {
    unsigned x, y, z;
};
static Place threadIdx, blockIdx, blockDim, gridDim;

struct Copy {
    float *to;
    const float *from;
};
struct Product {
    float *d;
    unsigned a[4], b[2];
};
struct Lane {
    jmp_buf here;
    ucontext_t start;
    std::vector<char> stack;
    bool started, waits, done;
    int at;  // the kind of meeting for which it waits: 1 of the warp, 2 of the block
    std::vector<Copy> copies;
    std::vector<Product> products;
};
enum { ROOM = 64 << 10, BEHIND = 1024 };  // numbers of shared memory, and of the memory behind it
alignas(16) static float shared[ROOM + BEHIND];
static unsigned used;  // how many of them the launch asked for
static std::vector<Lane> lanes(1024);
static std::minstd_rand dice;
static jmp_buf scheduler;
static int current, exact_factors;
static const char *wrong;

/* Called by a lane: end the launch. */
static void fail(const char *why) {
    wrong = why;
    _longjmp(scheduler, 1);
}

static float number(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
#define __uint_as_float number

static unsigned bits_of(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* The nearest number with a mantissa of 23 - cut bits; of two as near, the one farther from 0, or the even one. */
static unsigned rounded(float x, int cut, bool even) {
    unsigned bits = bits_of(x), half = 1u << (cut - 1);
    if (x != x) return bits;
    return (bits + (even ? half - 1 + (bits >> cut & 1) : half)) & ~(2 * half - 1);
}

static unsigned tf32(float x) { return exact_factors ? bits_of(x) : rounded(x, 13, false); }

static unsigned bf16(float low, float high) { return rounded(high, 16, true) | rounded(low, 16, true) >> 16; }

static void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    lanes[current].products.push_back({d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
}

/* D += A B for the products that the lanes of a warp have noted.  A sum of one product of matrices is rounded once, as on
   a device but for the last bit, which a device cuts off.  The numbers lie by the layouts in NVIDIA's PTX ISA (mma.m16n8k8, .tf32,
   and mma.m16n8k16, .bf16). */
static void multiply_all(Lane *warp) {
    const int depth = PRECISION == 2 ? 16 : 8, pack = depth / 8;
    for (int l = 1; l < 32; ++l)
        if (warp[l].products.size() != warp[0].products.size()) {
            wrong = "a warp multiplies with some of its lanes only";
            return;
        }
    for (size_t k = 0; k < warp[0].products.size(); ++k) {
        float a[16][16], b[16][8], d[16][8];
        for (int l = 0; l < 32; ++l) {
            Product &p = warp[l].products[k];
            int g = l / 4, t = l % 4;
            for (int e = 0; e < 4; ++e) {
                for (int i = 0; i < pack; ++i) {
                    int column = e / 2 * depth / 2 + t * pack + i;
                    unsigned a_bits = pack == 1 ? p.a[e] : (i ? p.a[e] >> 16 : p.a[e]) << 16;
                    a[g + e % 2 * 8][column] = number(a_bits);
                    if (e % 2 == 0) b[column][g] = number(pack == 1 ? p.b[e / 2] : (i ? p.b[e / 2] >> 16 : p.b[e / 2]) << 16);
                }
                d[g + e / 2 * 8][2 * t + e % 2] = p.d[e];
            }
        }
        for (int m = 0; m < 16; ++m) {
            double sum[8] = {};
            for (int i = 0; i < depth; ++i)
                for (int n = 0; n < 8; ++n) sum[n] += double(a[m][i]) * double(b[i][n]);
            for (int n = 0; n < 8; ++n) d[m][n] = float(double(d[m][n]) + sum[n]);
        }
        for (int l = 0; l < 32; ++l)
            for (int e = 0; e < 4; ++e) warp[l].products[k].d[e] = d[l / 4 + e / 2 * 8][l % 4 * 2 + e % 2];
    }
    for (int l = 0; l < 32; ++l) warp[l].products.clear();
}

/* Wait until all lanes of the warp (at = 1) or of the block (at = 2) are here. */
static void meet(int at) {
    Lane &lane = lanes[current];
    lane.waits = true;
    lane.at = at;
    if (!_setjmp(lane.here)) _longjmp(scheduler, 1);
}

static void __syncwarp() { meet(1); }

static void __syncthreads() { meet(2); }

static void fetch(float *to, const float *from, bool inside) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) fail("an address is no multiple of 16 bytes");
    if (to < shared || to + 4 > shared + used) fail("a copy goes outside the shared memory");
    for (int e = 0; e < 4; ++e) to[e] = std::numeric_limits<float>::quiet_NaN();
    lanes[current].copies.push_back({to, inside ? from : nullptr});
}

static void arrived() {
    for (Copy &copy : lanes[current].copies)
        for (int e = 0; e < 4; ++e) copy.to[e] = copy.from ? copy.from[e] : 0;
    lanes[current].copies.clear();
    __syncthreads();
}

typedef void (*Kernel)(long long, ...);
static Kernel kernel;
static const long long *arguments;

static void live() {
    const long long *a = arguments;
    ((void (*)(long long, long long, long long, long long, long long, long long, long long, long long, long long,
               long long, long long, long long, long long))kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8],
                                                                   a[9], a[10], a[11], a[12]);
    lanes[current].done = lanes[current].waits = true;
    lanes[current].at = 2;
    _longjmp(scheduler, 1);
}

static void resume(int index) {
    Lane &lane = lanes[index];
    current = index;
    threadIdx.x = index;
    if (_setjmp(scheduler)) return;
    if (lane.started) _longjmp(lane.here, 1);
    lane.started = true;
    setcontext(&lane.start);
}

static bool all_wait(int first, int count, int at) {
    for (int i = first; i < first + count; ++i)
        if (!lanes[i].waits || lanes[i].at != at || lanes[i].done != lanes[first].done) return false;
    return true;
}

static void release(int first, int count) {
    for (int i = first; i < first + count; ++i) lanes[i].waits = lanes[i].done;
}

static void run_block() {
    int count = blockDim.x, warps = count / 32;
    for (unsigned i = 0; i < used + BEHIND; ++i) shared[i] = std::numeric_limits<float>::quiet_NaN();
    for (int i = 0; i < count; ++i) {
        Lane &lane = lanes[i];
        lane.started = lane.waits = lane.done = false;
        lane.copies.clear();
        lane.products.clear();
        lane.stack.resize(32 << 10);
        getcontext(&lane.start);
        lane.start.uc_stack.ss_sp = lane.stack.data();
        lane.start.uc_stack.ss_size = lane.stack.size();
        makecontext(&lane.start, live, 0);
    }
    std::vector<char> ready(warps, 1);  // warps that can run
    for (int left = warps; !wrong;) {
        if (left == 0) {  // all warps wait
            if (!all_wait(0, count, 2)) wrong = "threads wait for each other for ever";
            if (wrong || lanes[0].done) break;
            release(0, count);
            ready.assign(warps, 1);
            left = warps;
        }
        int warp = dice() % warps;
        while (!ready[warp]) warp = (warp + 1) % warps;
        for (int l = 0; l < 32 && !wrong; ++l)
            if (!lanes[warp * 32 + l].waits) resume(warp * 32 + l);
        if (wrong) break;
        if (all_wait(warp * 32, 32, 1)) {
            multiply_all(&lanes[warp * 32]);
            release(warp * 32, 32);
        } else {
            if (all_wait(warp * 32, 32, 2)) multiply_all(&lanes[warp * 32]);
            ready[warp] = 0;
            --left;
        }
    }
    for (unsigned i = used; !wrong && i < used + BEHIND; ++i)
        if (shared[i] == shared[i]) wrong = "a number was written behind the shared memory";
}

/* Run a kernel: what went wrong, or null.  sizes: the grid's three, and how many threads and bytes a block has. */
extern "C" const char *run(Kernel f, const int *sizes, const long long *given, int exact, int seed) {
    kernel = f;
    arguments = given;
    exact_factors = exact;
    dice.seed(seed);
    wrong = nullptr;
    gridDim = {unsigned(sizes[0]), unsigned(sizes[1]), unsigned(sizes[2])};
    blockDim = {unsigned(sizes[3]), 1, 1};
    used = sizes[4] / 4;
    if (used > ROOM) return "more shared memory than a block has";
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x && !wrong; ++blockIdx.x) run_block();
    return wrong;
}
