// Says what the parameters of a kernel are, and runs all of its threads. Stands before the text of
// the kernel, whose macros so do not reach it; EMULATED_CUDA_LAUNCHER stands behind.

namespace emulated_cuda {

// 'p' pointer, 'i' integer, 'f' floating point, 's' anything else.
template <typename T> struct Kind { static const char value = 's'; };
template <typename T> struct Kind<T*> { static const char value = 'p'; };
template <> struct Kind<float> { static const char value = 'f'; };
template <> struct Kind<double> { static const char value = 'f'; };
template <> struct Kind<int> { static const char value = 'i'; };
template <> struct Kind<unsigned> { static const char value = 'i'; };
template <> struct Kind<long> { static const char value = 'i'; };
template <> struct Kind<unsigned long> { static const char value = 'i'; };
template <> struct Kind<long long> { static const char value = 'i'; };
template <> struct Kind<unsigned long long> { static const char value = 'i'; };

template <int... I> struct Indices {};
template <int N, int... I> struct Counting : Counting<N - 1, N - 1, I...> {};
template <int... I> struct Counting<0, I...> { typedef Indices<I...> type; };

template <typename... P, int... I>
inline void call(void (*kernel)(P...), void** arguments, Indices<I...>) {
  kernel(*static_cast<P*>(arguments[I])...);
}
template <typename... P>
inline void call(void (*kernel)(P...), void** arguments) {
  call(kernel, arguments, typename Counting<sizeof...(P)>::type());
}

inline unsigned long long common_divisor(unsigned long long a, unsigned long long b) {
  while (b) {
    unsigned long long rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// Room for 64 parameters of "p8 ".
struct Text {
  char characters[256];
};

template <typename... P>
inline Text describe(void (*)(P...)) {
  static_assert(sizeof...(P) <= 64, "at most 64 parameters");
  const char kinds[] = {Kind<P>::value..., 0};
  const int sizes[] = {static_cast<int>(sizeof(P))..., 0};
  Text text;
  int at = 0;
  for (unsigned k = 0; k < sizeof...(P); ++k) {
    text.characters[at++] = kinds[k];
    text.characters[at++] = sizes[k] < 10 ? static_cast<char>('0' + sizes[k]) : '9';
    text.characters[at++] = ' ';
  }
  text.characters[at] = 0;
  return text;
}

// `order` 0 runs the threads as they are numbered; another one steps through them by a number that
// has no divisor in common with theirs, so that each runs once.
template <typename... P>
inline void launch(void (*kernel)(P...), unsigned grid, unsigned block, unsigned long long order,
                   void** arguments) {
  const unsigned long long total = static_cast<unsigned long long>(grid) * block;
  unsigned long long step = 1, thread = 0;
  if (order) {
    step = (order * 0x9E3779B97F4A7C15ull >> 16) % total;
    while (common_divisor(step, total) != 1) step = (step + 1) % total;
    thread = (order >> 3) % total;
  }
  gridDim = dim3{grid, 1, 1};
  blockDim = dim3{block, 1, 1};
  for (unsigned long long k = 0; k < total; ++k) {
    blockIdx = uint3{static_cast<unsigned>(thread / block), 0, 0};
    threadIdx = uint3{static_cast<unsigned>(thread % block), 0, 0};
    call(kernel, arguments);
    thread = (thread + step) % total;
  }
}

}  // namespace emulated_cuda

#define EMULATED_CUDA_LAUNCHER(function)                                                       \
  static emulated_cuda::Text emulated_text = emulated_cuda::describe(&function);               \
  extern "C" {                                                                                 \
  __attribute__((visibility("default"))) const char* emulated_parameters =                     \
      emulated_text.characters;                                                                \
  __attribute__((visibility("default"))) void emulated_launch(                                 \
      unsigned grid, unsigned block, unsigned long long order, void** arguments) {             \
    emulated_cuda::launch(&function, grid, block, order, arguments);                           \
  }                                                                                            \
  }
