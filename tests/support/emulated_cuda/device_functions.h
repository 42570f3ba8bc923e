// What NVRTC knows without an include, as far as kernels use it, for a host compiler.

typedef unsigned long size_t;

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
};

static thread_local uint3 threadIdx, blockIdx;
static thread_local dim3 blockDim, gridDim;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

extern "C" {
void* memcpy(void*, const void*, size_t) noexcept;
void* memset(void*, int, size_t) noexcept;

float sqrtf(float) noexcept;
float fabsf(float) noexcept;
float fmaf(float, float, float) noexcept;
float fmaxf(float, float) noexcept;
float fminf(float, float) noexcept;
float fmodf(float, float) noexcept;
float powf(float, float) noexcept;
float expf(float) noexcept;
float logf(float) noexcept;
float tanhf(float) noexcept;
float floorf(float) noexcept;
float ceilf(float) noexcept;
float truncf(float) noexcept;
float copysignf(float, float) noexcept;

double sqrt(double) noexcept;
double fabs(double) noexcept;
double fma(double, double, double) noexcept;
double fmax(double, double) noexcept;
double fmin(double, double) noexcept;
double fmod(double, double) noexcept;
double pow(double, double) noexcept;
double exp(double) noexcept;
double log(double) noexcept;
double tanh(double) noexcept;
double floor(double) noexcept;
double ceil(double) noexcept;
double trunc(double) noexcept;
double copysign(double, double) noexcept;
}

inline float sqrt(float x) { return sqrtf(x); }
inline float fabs(float x) { return fabsf(x); }
inline float fma(float x, float y, float z) { return fmaf(x, y, z); }
inline float fmax(float x, float y) { return fmaxf(x, y); }
inline float fmin(float x, float y) { return fminf(x, y); }
inline float fmod(float x, float y) { return fmodf(x, y); }
inline float pow(float x, float y) { return powf(x, y); }
inline float exp(float x) { return expf(x); }
inline float log(float x) { return logf(x); }
inline float tanh(float x) { return tanhf(x); }
inline float floor(float x) { return floorf(x); }
inline float ceil(float x) { return ceilf(x); }
inline float trunc(float x) { return truncf(x); }
inline float copysign(float x, float y) { return copysignf(x, y); }
inline float abs(float x) { return fabsf(x); }
inline double abs(double x) { return fabs(x); }
inline int abs(int x) { return x < 0 ? -x : x; }
inline long long abs(long long x) { return x < 0 ? -x : x; }

inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isnan(double x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isinf(double x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }
inline bool isfinite(double x) { return __builtin_isfinite(x); }
inline bool signbit(float x) { return __builtin_signbit(x); }
inline bool signbit(double x) { return __builtin_signbit(x); }

inline float max(float x, float y) { return fmaxf(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
inline int max(int x, int y) { return x < y ? y : x; }
inline unsigned max(unsigned x, unsigned y) { return x < y ? y : x; }
inline long long max(long long x, long long y) { return x < y ? y : x; }
inline unsigned long long max(unsigned long long x, unsigned long long y) { return x < y ? y : x; }
inline float min(float x, float y) { return fminf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline int min(int x, int y) { return y < x ? y : x; }
inline unsigned min(unsigned x, unsigned y) { return y < x ? y : x; }
inline long long min(long long x, long long y) { return y < x ? y : x; }
inline unsigned long long min(unsigned long long x, unsigned long long y) { return y < x ? y : x; }

namespace emulated_cuda {
template <typename To, typename From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace emulated_cuda

inline int __float_as_int(float x) { return emulated_cuda::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulated_cuda::bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_cuda::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulated_cuda::bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulated_cuda::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated_cuda::bits<double>(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __dsqrt_rn(double x) { return sqrt(x); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

template <typename T>
inline T __ldg(const T* from) {
  return *from;
}

// One thread of a launch runs at a time, so these need nothing more.
template <typename T>
inline T atomicExch(T* at, T value) {
  T old = *at;
  *at = value;
  return old;
}
template <typename T>
inline T atomicAdd(T* at, T value) {
  return atomicExch(at, static_cast<T>(*at + value));
}
template <typename T>
inline T atomicMax(T* at, T value) {
  return atomicExch(at, *at < value ? value : *at);
}
template <typename T>
inline T atomicMin(T* at, T value) {
  return atomicExch(at, value < *at ? value : *at);
}
template <typename T>
inline T atomicOr(T* at, T value) {
  return atomicExch(at, static_cast<T>(*at | value));
}
template <typename T>
inline T atomicAnd(T* at, T value) {
  return atomicExch(at, static_cast<T>(*at & value));
}
template <typename T>
inline T atomicCAS(T* at, T expected, T value) {
  T old = *at;
  if (old == expected) *at = value;
  return old;
}
