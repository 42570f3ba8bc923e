// The kernels around the rules of updates.
//
// All have the same parameters, of which lamb needs several:
//
//   weight, rounded: what is updated; rounded may be null, or gets each new weight in its dtype.
//   gradient: of element i at i - begin; null where all of it is 0.
//   ids: of the rows that the packed gradient belongs to, row r at r - id_base; null for all rows.
//   row_size: elements of a row.
//   begin, count: which elements of the packed rows, or of the weight where ids is null.
//   s0...: the states, as Update.states has them.
//   c0...: the numbers, as Update.constants has them.

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#define STATES_0
#define STATES_1 STATE *s0,
#define STATES_2 STATES_1 STATE *s1,
#define STATES_3 STATES_2 STATE *s2,

#define STATE_LIST_0 0
#define STATE_LIST_1 s0
#define STATE_LIST_2 STATE_LIST_1, s1
#define STATE_LIST_3 STATE_LIST_2, s2

#define NUMBERS_4 NUMBER c0, NUMBER c1, NUMBER c2, NUMBER c3
#define NUMBERS_5 NUMBERS_4, NUMBER c4
#define NUMBERS_6 NUMBERS_5, NUMBER c5
#define NUMBERS_7 NUMBERS_6, NUMBER c6
#define NUMBERS_8 NUMBERS_7, NUMBER c7
#define NUMBERS_9 NUMBERS_8, NUMBER c8
#define NUMBERS_10 NUMBERS_9, NUMBER c9

#define NUMBER_LIST_4 number(c0), number(c1), number(c2), number(c3)
#define NUMBER_LIST_5 NUMBER_LIST_4, number(c4)
#define NUMBER_LIST_6 NUMBER_LIST_5, number(c5)
#define NUMBER_LIST_7 NUMBER_LIST_6, number(c6)
#define NUMBER_LIST_8 NUMBER_LIST_7, number(c7)
#define NUMBER_LIST_9 NUMBER_LIST_8, number(c8)
#define NUMBER_LIST_10 NUMBER_LIST_9, number(c9)

#define PARAMETERS                                                                              \
    WEIGHT *weight, ROUNDED *rounded, const GRADIENT *gradient, const int64 *ids,               \
        int64 id_base, int64 row_size, int64 begin, int64 count,                                \
        JOIN(STATES_, STATES) JOIN(NUMBERS_, CONSTANTS)

// Of PARAMETERS.
#define ARRAYS                                                                                  \
    {                                                                                           \
        weight, rounded, gradient, ids, id_base, row_size, begin, begin + count,                \
        {                                                                                       \
            JOIN(STATE_LIST_, STATES)                                                           \
        }                                                                                       \
    }
#define RULE {JOIN(NUMBER_LIST_, CONSTANTS)}

struct Arrays {
    WEIGHT* weight;
    ROUNDED* rounded;
    const GRADIENT* gradient;
    const int64* ids;
    int64 id_base, row_size, begin, end;
    // One more, since C++ has no empty arrays.
    STATE* states[STATES + 1];

    // Where element i is in the weight and the states.
    template <bool by_rows>
    DEVICE int64 place(int64 i) const {
        if (!by_rows) return i;
        int64 row = (int64)((uint64)i / (uint64)row_size);
        return ids[row - id_base] * row_size + (i - row * row_size);
    }

    DEVICE COMPUTE gradient_of(int64 i) const {
        return gradient ? Cast<COMPUTE, GRADIENT>::of(gradient[i - begin]) : ZERO;
    }
};

#ifdef KERNEL_lamb_squares

#define PARTIALS 65536

#ifdef MODE_step
#define SQUARED(at, states) rule.step(Cast<COMPUTE, WEIGHT>::of(arrays.weight[at]), states)
#else
#define SQUARED(at, states) Cast<COMPUTE, WEIGHT>::of(arrays.weight[at])
#endif

// Each lane adds the same elements in the same order, however many threads there are.
template <bool by_rows>
DEVICE void add_squares(const Arrays& arrays, const Rule& rule, double* partials) {
    const int64 count = arrays.end - arrays.begin, lanes = count < PARTIALS ? count : PARTIALS;
    for (int64 lane = THREAD; lane < lanes; lane += THREADS) {
        double sum = partials[lane];
#pragma unroll 4
        for (int64 i = arrays.begin + lane; i < arrays.end; i += PARTIALS) {
            const int64 at = arrays.place<by_rows>(i);
#ifdef MODE_step
            const COMPUTE states[] = {
                Cast<COMPUTE, STATE>::of(arrays.states[0][at]),
                Cast<COMPUTE, STATE>::of(arrays.states[1][at]),
            };
#endif
            const double x = Narrow<double>::of(SQUARED(at, states));
            sum += x * x;
        }
        partials[lane] = sum;
    }
}

// Adds squares of the weight, or of the step, which the new moments give, to the partial sums.
extern "C" __global__ void lamb_squares(PARAMETERS, double* partials) {
    const Arrays arrays = ARRAYS;
    Rule rule = RULE;
    prepare(&rule, nullptr);
    if (ids) {
        add_squares<true>(arrays, rule, partials);
    } else {
        add_squares<false>(arrays, rule, partials);
    }
}

#else

// lamb needs the moments of all elements before the first weight changes.
#ifdef KERNEL_lamb_moments
#define STORES_WEIGHT false
#else
#define STORES_WEIGHT true
#endif
#ifdef KERNEL_lamb_apply
#define STORES_STATES false
#else
#define STORES_STATES true
#endif

template <bool by_rows>
struct Updating {
    Arrays arrays;
    Rule rule;

    template <int size>
    DEVICE void do_batch(int64 i, int64 step) const {
        int64 at[size];
        COMPUTE old[size], gradient[size], states[size][STATES + 1];
#pragma unroll
        for (int k = 0; k < size; ++k) {
            at[k] = arrays.place<by_rows>(i + k * step);
            old[k] = Cast<COMPUTE, WEIGHT>::of(arrays.weight[at[k]]);
            gradient[k] = arrays.gradient_of(i + k * step);
#pragma unroll
            for (int s = 0; s < STATES; ++s) {
                states[k][s] = Cast<COMPUTE, STATE>::of(arrays.states[s][at[k]]);
            }
        }
#pragma unroll
        for (int k = 0; k < size; ++k) {
            const COMPUTE next = rule.next(old[k], gradient[k], states[k]);
            if (STORES_STATES) {
#pragma unroll
                for (int s = 0; s < STATES; ++s) {
                    arrays.states[s][at[k]] = Cast<STATE, COMPUTE>::of(states[k][s]);
                }
            }
            if (STORES_WEIGHT) {
                arrays.weight[at[k]] = Cast<WEIGHT, COMPUTE>::of(next);
                if (arrays.rounded) arrays.rounded[at[k]] = Cast<ROUNDED, COMPUTE>::of(next);
            }
        }
    }
};

DEVICE void update_all(const Arrays& arrays, Rule rule, const double* sums) {
    prepare(&rule, sums);
    if (arrays.ids) {
        do_all(Updating<true>{arrays, rule}, arrays.begin, arrays.end);
    } else {
        do_all(Updating<false>{arrays, rule}, arrays.begin, arrays.end);
    }
}

#if defined(KERNEL_lamb_moments)
extern "C" __global__ void lamb_moments(PARAMETERS) {
    update_all(ARRAYS, RULE, nullptr);
}
#elif defined(KERNEL_lamb_apply)
extern "C" __global__ void lamb_apply(PARAMETERS, const double* sums) {
    update_all(ARRAYS, RULE, sums);
}
#else
extern "C" __global__ void update(PARAMETERS) {
    update_all(ARRAYS, RULE, nullptr);
}
#endif

#endif
