// Elements of arrays: their types, conversions between them with NumPy's results, and the loop
// over them.
//
// Nothing is included, so that NVRTC and a host's compiler take it alike. Arithmetic in float32 is
// spelled out in PTX: CuPy compiles with -ftz=true after all other options, and numbers below the
// smallest normal one would become 0, unlike on a CPU.

#define DEVICE __device__ inline
#define THREAD ((int64)blockIdx.x * blockDim.x + threadIdx.x)
#define THREADS ((int64)gridDim.x * blockDim.x)

typedef signed char int8;
typedef unsigned char uint8;
typedef int int32;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;
typedef double float64;

struct boolean {
    uint8 bits;
};

struct float16 {
    unsigned short bits;
};

struct bfloat16 {
    unsigned short bits;
};

struct float32 {
    float value;
};

template <class To, class From>
DEVICE To bit_cast(From from) {
    union {
        From from;
        To to;
    } both;
    both.from = from;
    return both.to;
}

#ifdef __CUDA_ARCH__

#define ARITHMETIC(symbol, instruction)                                                         \
    DEVICE float32 operator symbol(float32 a, float32 b) {                                      \
        float32 result;                                                                         \
        asm(instruction " %0, %1, %2;" : "=f"(result.value) : "f"(a.value), "f"(b.value));      \
        return result;                                                                          \
    }

DEVICE bool operator<(float32 a, float32 b) {
    int result;
    asm("{ .reg .pred less; setp.lt.f32 less, %1, %2; selp.s32 %0, 1, 0, less; }"
        : "=r"(result)
        : "f"(a.value), "f"(b.value));
    return result != 0;
}

DEVICE float32 root(float32 x) {
    float32 result;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(result.value) : "f"(x.value));
    return result;
}

DEVICE double root(double x) {
    return sqrt(x);
}

DEVICE double multiplied_add(double a, double b, double c) {
    return fma(a, b, c);
}

DEVICE double widened(float32 x) {
    double result;
    asm("cvt.f64.f32 %0, %1;" : "=d"(result) : "f"(x.value));
    return result;
}

DEVICE float32 narrowed(double x) {
    float32 result;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(result.value) : "d"(x));
    return result;
}

#else

#define ARITHMETIC(symbol, instruction)                                                         \
    DEVICE float32 operator symbol(float32 a, float32 b) {                                      \
        return float32{a.value symbol b.value};                                                 \
    }

DEVICE bool operator<(float32 a, float32 b) {
    return a.value < b.value;
}

DEVICE float32 root(float32 x) {
    return float32{__builtin_sqrtf(x.value)};
}

DEVICE double root(double x) {
    return __builtin_sqrt(x);
}

DEVICE double multiplied_add(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}

DEVICE double widened(float32 x) {
    return x.value;
}

DEVICE float32 narrowed(double x) {
    return float32{(float)x};
}

#endif

ARITHMETIC(+, "add.rn.f32")
ARITHMETIC(-, "sub.rn.f32")
ARITHMETIC(*, "mul.rn.f32")
ARITHMETIC(/, "div.rn.f32")

DEVICE bool operator>(float32 a, float32 b) {
    return b < a;
}

DEVICE float32 operator-(float32 x) {
    return bit_cast<float32>(bit_cast<uint32>(x) ^ 0x80000000u);
}

// An element as the number to compute with: float32, double or int64.

DEVICE double wide(double x) {
    return x;
}

DEVICE float32 wide(float32 x) {
    return x;
}

DEVICE float32 wide(bfloat16 x) {
    return bit_cast<float32>((uint32)x.bits << 16);
}

DEVICE float32 wide(float16 x) {
#ifdef __CUDA_ARCH__
    float32 result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result.value) : "h"(x.bits));
    return result;
#else
    // The factor 2^112 mends the exponent's bias, of subnormal numbers too.
    const float32 factor = bit_cast<float32>((127u + 112u) << 23);
    uint32 magnitude = (x.bits & 0x7FFFu) << 13;
    uint32 bits = bit_cast<uint32>(bit_cast<float32>(magnitude) * factor);
    if (magnitude >= 0x7C00u << 13) bits |= 0x7F800000u;
    return bit_cast<float32>(bits | (x.bits & 0x8000u) << 16);
#endif
}

DEVICE int64 wide(boolean x) {
    return x.bits != 0;
}

DEVICE int64 wide(int8 x) {
    return x;
}

DEVICE int64 wide(uint8 x) {
    return x;
}

DEVICE int64 wide(int32 x) {
    return x;
}

DEVICE int64 wide(int64 x) {
    return x;
}

// Rounds such a number to an element's type. What an integer cannot hold gives what an x86 gives.

template <class T>
struct Narrow {
    static DEVICE T of(int64 x) {
        return (T)x;
    }
    static DEVICE T of(double x) {
        return (T)(x > -2147483649.0 && x < 2147483648.0 ? (int32)x : -2147483647 - 1);
    }
    static DEVICE T of(float32 x) {
        return of(widened(x));
    }
};

template <>
DEVICE int64 Narrow<int64>::of(double x) {
    const double beyond = 9223372036854775808.0;
    return x >= -beyond && x < beyond ? (int64)x : (int64)((uint64)1 << 63);
}

template <>
struct Narrow<boolean> {
    static DEVICE boolean of(int64 x) {
        return boolean{(uint8)(x != 0)};
    }
    static DEVICE boolean of(double x) {
        return boolean{(uint8)(x != 0)};
    }
    static DEVICE boolean of(float32 x) {
        return boolean{(uint8)((bit_cast<uint32>(x) & 0x7FFFFFFFu) != 0)};
    }
};

template <>
struct Narrow<double> {
    static DEVICE double of(int64 x) {
        return (double)x;
    }
    static DEVICE double of(double x) {
        return x;
    }
    static DEVICE double of(float32 x) {
        return widened(x);
    }
};

template <>
struct Narrow<float32> {
    static DEVICE float32 of(int64 x) {
        return float32{(float)x};
    }
    static DEVICE float32 of(double x) {
        return narrowed(x);
    }
    static DEVICE float32 of(float32 x) {
        return x;
    }
};

template <>
struct Narrow<bfloat16> {
    static DEVICE bfloat16 of(float32 x) {
        bfloat16 result;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x.value));
#else
        // Round half to even: add just under a half, and one more where the kept part is odd.
        uint32 bits = bit_cast<uint32>(x);
        uint32 rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
        // Rounding could carry a NaN over into infinity.
        bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
        result.bits = (unsigned short)(is_nan ? bits >> 16 | 0x40u : rounded);
#endif
        return result;
    }
    // As ml_dtypes has it: rounded to float32 first.
    static DEVICE bfloat16 of(double x) {
        return of(narrowed(x));
    }
    static DEVICE bfloat16 of(int64 x) {
        return of(Narrow<float32>::of(x));
    }
};

template <>
struct Narrow<float16> {
    static DEVICE float16 of(float32 x) {
        float16 result;
#ifdef __CUDA_ARCH__
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x.value));
#else
        uint32 bits = bit_cast<uint32>(x), magnitude = bits & 0x7FFFFFFFu;
        // 0xC8000FFF: the exponent's bias goes from 127 to 15, and 0xFFF rounds half to even.
        uint32 half = (magnitude + 0xC8000FFFu + (magnitude >> 13 & 1)) >> 13;
        // Below the smallest normal number the addition puts the last kept bit in its place.
        if (magnitude < 113u << 23) {
            half = bit_cast<uint32>(bit_cast<float32>(magnitude) + float32{0.5f}) - 0x3F000000u;
        }
        if (magnitude >= 143u << 23) half = 0x7C00u;
        if (magnitude > 0x7F800000u) half = 0x7E00u;
        result.bits = (unsigned short)(half | (bits >> 16 & 0x8000u));
#endif
        return result;
    }
    // Rounded once: what float32 has no place for is kept in its last bit.
    static DEVICE float16 of(double x) {
        const uint64 rest = 0x1FFFFFFFu;
        uint64 bits = bit_cast<uint64>(x), odd = (bits & rest) != 0 ? rest + 1 : 0;
        return of(narrowed(bit_cast<double>((bits & ~rest) | odd)));
    }
    static DEVICE float16 of(int64 x) {
        return of(Narrow<float32>::of(x));
    }
};

// An element as another type's; of the same type, its bits.

template <class To, class From>
struct Cast {
    static DEVICE To of(From x) {
        return Narrow<To>::of(wide(x));
    }
};

template <class T>
struct Cast<T, T> {
    static DEVICE T of(T x) {
        return x;
    }
};

// Elements that a thread loads before it stores the first, so that enough loads are under way.
#define BATCH 4

// Does all elements from begin to end: body.do_batch<size>(i, step) does i, i + step, ...
template <class Body>
DEVICE void do_all(const Body& body, int64 begin, int64 end) {
    const int64 step = THREADS;
    int64 i = begin + THREAD;
    for (; i + (BATCH - 1) * step < end; i += BATCH * step) {
        body.template do_batch<BATCH>(i, step);
    }
    for (; i < end; i += step) {
        body.template do_batch<1>(i, step);
    }
}
