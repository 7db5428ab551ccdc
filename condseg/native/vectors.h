// SIMD vectors, products of small matrices in registers, and threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
constexpr int WIDTH = 16;  // elements of a vector
constexpr int ROWS = 12;   // of a product in registers, which has PANEL columns
#else
constexpr int WIDTH = 8;
constexpr int ROWS = 6;
#endif
constexpr int PANEL = 2 * WIDTH;

#define FORCE_INLINE inline __attribute__((always_inline))

// Unaligned; GCC supports + - * and scalar times vector.
typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

// The first elements of a vector, then zeros.
inline Vector load(const float* from, int64_t numbers) {
  if (numbers >= WIDTH) return *reinterpret_cast<const Vector*>(from);
  Vector vector = {};
  if (numbers > 0) std::memcpy(&vector, from, numbers * sizeof(float));
  return vector;
}

inline void store(float* to, Vector vector, int64_t numbers) {
  if (numbers >= WIDTH)
    *reinterpret_cast<Vector*>(to) = vector;
  else if (numbers > 0)
    std::memcpy(to, &vector, numbers * sizeof(float));
}

inline int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// Calls body(part, thread) for all parts, in PyTorch's threads: OpenMP's symbols are those of the
// library that PyTorch loaded.
template <class Body>
void in_parallel(int64_t parts, int64_t threads, Body body) {
  threads = std::min(threads, parts);
  if (threads <= 1) {
    for (int64_t part = 0; part < parts; ++part) body(part, int64_t{0});
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t part = 0; part < parts; ++part) body(part, int64_t{omp_get_thread_num()});
}

// A matrix whose element (row, k) lies at at[row * by_row + k * by_k].
struct Left {
  const float* at;
  int64_t by_row, by_k;
};

// c (R, PANEL) = a (R, inner) b (inner, PANEL), added to c if `add`. `next`, if not null, is the
// next b, which is prefetched.
template <int R, bool add>
FORCE_INLINE void product_in_registers(Left a, const float* b, int64_t b_row, int64_t inner,
                                       float* c, int64_t c_row, const float* next) {
  Vector sum[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < 2; ++n) sum[r][n] = add ? load(c + r * c_row + n * WIDTH, WIDTH) : Vector{};
  for (int64_t k = 0; k < inner; ++k) {
    if (next) {
      __builtin_prefetch(next + k * b_row, 0, 2);
      __builtin_prefetch(next + k * b_row + WIDTH, 0, 2);
    }
    const Vector left = load(b + k * b_row, WIDTH), right = load(b + k * b_row + WIDTH, WIDTH);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const float factor = a.at[r * a.by_row + k * a.by_k];
      sum[r][0] += factor * left;
      sum[r][1] += factor * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < 2; ++n) store(c + r * c_row + n * WIDTH, sum[r][n], WIDTH);
}

// The same for any number of rows, ROWS at a time, the rest in halves; the next rows of c are
// prefetched.
template <bool add, int R = ROWS>
inline void product(Left a, const float* b, int64_t b_row, int64_t inner, float* c, int64_t c_row,
                    int64_t rows, const float* next = nullptr) {
  for (; rows >= R; rows -= R, a.at += R * a.by_row, c += R * c_row, next = nullptr) {
    if (add)
      for (int64_t r = R; r < std::min<int64_t>(2 * R, rows); ++r)
        for (int n = 0; n < 2; ++n) __builtin_prefetch(c + r * c_row + n * WIDTH, 1, 2);
    product_in_registers<R, add>(a, b, b_row, inner, c, c_row, next);
  }
  if constexpr (R > 1)
    if (rows) product<add, R / 2>(a, b, b_row, inner, c, c_row, rows, next);
}
