// Kernels that write, cast, gather and scatter elements, and look at them.
//
// Each element i from begin to begin + count is done; what is fed in pieces starts at begin.

#if defined(KERNEL_combine) || defined(KERNEL_put_rows)

// What is stored where `old` was, the value having been cast first.

DEVICE double quotient(double a, double b) {
    return a / b;
}

DEVICE float32 quotient(float32 a, float32 b) {
    return a / b;
}

DEVICE double quotient(int64 a, int64 b) {
    return (double)a / (double)b;
}

#if defined(MODE_add)
#define SYMBOL +
#elif defined(MODE_subtract)
#define SYMBOL -
#elif defined(MODE_multiply)
#define SYMBOL *
#endif

#ifdef SYMBOL
DEVICE double computed(double a, double b) {
    return a SYMBOL b;
}

DEVICE float32 computed(float32 a, float32 b) {
    return a SYMBOL b;
}

// Wraps around. Of booleans it gives or, exclusive or, and.
DEVICE int64 computed(int64 a, int64 b) {
    return (int64)((uint64)a SYMBOL (uint64)b);
}
#endif

DEVICE TARGET combined(const TARGET* old, TARGET value) {
#if defined(MODE_assign)
    return value;
#elif defined(MODE_divide)
    return Narrow<TARGET>::of(quotient(wide(*old), wide(value)));
#else
    return Narrow<TARGET>::of(computed(wide(*old), wide(value)));
#endif
}

#endif

#ifdef KERNEL_combine

// Where element i is: geometry has the shape, the strides of the target and those of the value.
struct Everywhere {
    const int64* geometry;
    int32 ndim;

    DEVICE void find(int64 i, int64* to, int64* from) const {
        for (int32 axis = ndim - 1; axis >= 0; --axis) {
            int64 index = i;
            // The first axis does without the division, which takes long.
            if (axis > 0) {
                i = (int64)((uint64)i / (uint64)geometry[axis]);
                index -= i * geometry[axis];
            }
            *to += index * geometry[ndim + axis];
            *from += index * geometry[2 * ndim + axis];
        }
    }
};

// The same for one axis, or none.
struct Along {
    int64 target_stride, value_stride;

    DEVICE void find(int64 i, int64* to, int64* from) const {
        *to += i * target_stride;
        *from += i * value_stride;
    }
};

template <class Positions>
struct Combination {
    TARGET* target;
    const VALUE* value;
    Positions positions;

    template <int size>
    DEVICE void do_batch(int64 i, int64 step) const {
        int64 to[size];
        TARGET result[size];
#pragma unroll
        for (int k = 0; k < size; ++k) {
            int64 from = 0;
            to[k] = 0;
            positions.find(i + k * step, &to[k], &from);
            result[k] = combined(target + to[k], Cast<TARGET, VALUE>::of(value[from]));
        }
#pragma unroll
        for (int k = 0; k < size; ++k) target[to[k]] = result[k];
    }
};

// target, value: element (0, 0, ...) is at target_base and at -value_offset.
extern "C" __global__ void combine(
    TARGET* target, const VALUE* value, const int64* __restrict__ geometry, int32 ndim,
    int64 target_base, int64 value_offset, int64 begin, int64 count
) {
    target += target_base;
    value -= value_offset;
    if (ndim > 1) {
        const Everywhere everywhere = {geometry, ndim};
        do_all(Combination<Everywhere>{target, value, everywhere}, begin, begin + count);
    } else {
        const Along along = {ndim ? geometry[1] : 0, ndim ? geometry[2] : 0};
        do_all(Combination<Along>{target, value, along}, begin, begin + count);
    }
}

#endif

#if defined(KERNEL_take_rows) || defined(KERNEL_put_rows)

// Where in a table element i of the packed rows is.
DEVICE int64 place(const int64* ids, int64 id_base, int64 row_size, int64 i) {
    int64 row = (int64)((uint64)i / (uint64)row_size);
    return ids[row - id_base] * row_size + (i - row * row_size);
}

#endif

#ifdef KERNEL_take_rows

typedef unsigned char word1;
typedef unsigned short word2;
typedef uint32 word4;
typedef uint64 word8;
struct alignas(16) word16 {
    uint64 low, high;
};

struct Gathering {
    WORD* __restrict__ out;
    const WORD* __restrict__ table;
    const int64* __restrict__ ids;
    int64 id_base, row_words, begin;

    template <int size>
    DEVICE void do_batch(int64 i, int64 step) const {
        WORD words[size];
#pragma unroll
        for (int k = 0; k < size; ++k) {
            words[k] = table[place(ids, id_base, row_words, i + k * step)];
        }
#pragma unroll
        for (int k = 0; k < size; ++k) out[i + k * step - begin] = words[k];
    }
};

// ids: of row r of the packed rows at r - id_base.
extern "C" __global__ void take_rows(
    WORD* out, const WORD* table, const int64* ids, int64 id_base, int64 row_words, int64 begin,
    int64 count
) {
    do_all(Gathering{out, table, ids, id_base, row_words, begin}, begin, begin + count);
}

#endif

#ifdef KERNEL_put_rows

struct Scattering {
    TARGET* table;
    const VALUE* rows;
    const int64* ids;
    int64 id_base, row_size, begin;

    template <int size>
    DEVICE void do_batch(int64 i, int64 step) const {
        int64 to[size];
        TARGET result[size];
#pragma unroll
        for (int k = 0; k < size; ++k) {
            to[k] = place(ids, id_base, row_size, i + k * step);
            const VALUE value = rows[i + k * step - begin];
            result[k] = combined(table + to[k], Cast<TARGET, VALUE>::of(value));
        }
#pragma unroll
        for (int k = 0; k < size; ++k) table[to[k]] = result[k];
    }
};

// ids: of row r of the packed rows at r - id_base; unique.
extern "C" __global__ void put_rows(
    TARGET* table, const VALUE* rows, const int64* ids, int64 id_base, int64 row_size, int64 begin,
    int64 count
) {
    do_all(Scattering{table, rows, ids, id_base, row_size, begin}, begin, begin + count);
}

#endif

#ifdef KERNEL_all_finite

// An exponent of ones alone means infinity or NaN.

DEVICE bool is_finite(float16 x) {
    return (x.bits & 0x7C00u) != 0x7C00u;
}

DEVICE bool is_finite(bfloat16 x) {
    return (x.bits & 0x7F80u) != 0x7F80u;
}

DEVICE bool is_finite(float32 x) {
    return (bit_cast<uint32>(x) & 0x7F800000u) != 0x7F800000u;
}

DEVICE bool is_finite(float64 x) {
    const uint64 exponent = (uint64)0x7FF << 52;
    return (bit_cast<uint64>(x) & exponent) != exponent;
}

extern "C" __global__ void all_finite(
    const VALUE* __restrict__ values, int64 begin, int64 count, int32* __restrict__ found
) {
    const int64 end = begin + count, step = THREADS;
    bool finite = true;
#pragma unroll 4
    for (int64 i = begin + THREAD; i < end; i += step) {
        finite = finite & is_finite(values[i]);
    }
    // Whoever writes writes the same.
    if (!finite) *found = 1;
}

#endif

#ifdef KERNEL_sum_partials

// sums[lane] = values[lane] + values[lane + lanes] + ..., in this order. sums may be values.
extern "C" __global__ void sum_partials(
    const double* values, int64 size, int64 lanes, double* sums
) {
    for (int64 lane = THREAD; lane < lanes; lane += THREADS) {
        double sum = 0;
#pragma unroll 8
        for (int64 i = lane; i < size; i += lanes) sum += values[i];
        sums[lane] = sum;
    }
}

#endif
