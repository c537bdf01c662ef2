// Eight float64 numbers at a time on every processor: the compiler splits them into available registers.
#pragma once

#include <cstdint>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "target.hpp"

namespace art::ART_TARGET {

constexpr int kLanes = 8;
constexpr double kInfinity = __builtin_huge_val();

typedef double Numbers __attribute__((vector_size(kLanes * sizeof(double))));
typedef int64_t Integers __attribute__((vector_size(kLanes * sizeof(int64_t))));

inline Numbers all(double value) { return Numbers{} + value; }
inline Integers all(int64_t value) { return Integers{} + value; }

// Not Numbers itself, which would require an alignment that not every pointer has.
inline Numbers load(const double* from) {
  Numbers numbers;
  __builtin_memcpy(&numbers, from, sizeof(numbers));
  return numbers;
}
inline Integers load(const int64_t* from) {
  Integers integers;
  __builtin_memcpy(&integers, from, sizeof(integers));
  return integers;
}
inline void store(double* to, Numbers numbers) { __builtin_memcpy(to, &numbers, sizeof(numbers)); }
inline void store(int64_t* to, Integers integers) { __builtin_memcpy(to, &integers, sizeof(integers)); }

inline Numbers smaller(Numbers a, Numbers b) { return a < b ? a : b; }

// The minimum of eight numbers.
inline double least(Numbers numbers) {
#if defined(__AVX512F__)
  return _mm512_reduce_min_pd((__m512d)numbers);
#else
  double lanes[kLanes];
  store(lanes, numbers);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] = lanes[lane + half] < lanes[lane] ? lanes[lane + half] : lanes[lane];
  return lanes[0];
#endif
}

// The first lane that equals `value`; there is one.
inline int first_equal(Numbers numbers, double value) {
#if defined(__AVX512F__)
  return __builtin_ctz(_mm512_cmp_pd_mask((__m512d)numbers, _mm512_set1_pd(value), _CMP_EQ_OQ));
#else
  int lane = 0;
  while (numbers[lane] != value) ++lane;
  return lane;
#endif
}

}  // namespace art::ART_TARGET
