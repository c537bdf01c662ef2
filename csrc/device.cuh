// Building blocks of the kernels: groups of lanes, shared memory, and loads of any dtype.
#pragma once

#include <cstdint>

#include "assignment.hpp"

namespace art {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

#ifdef __CUDACC__
__device__ inline unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}
#endif

// Unsigned integers in the order of the doubles (except NaN), and back: integers have fast minima.
__device__ inline uint64_t ordered(double value) {
  const int64_t bits = __double_as_longlong(value);
  return static_cast<uint64_t>(bits) ^ (static_cast<uint64_t>(bits >> 63) | (uint64_t{1} << 63));
}

__device__ inline double from_ordered(uint64_t key) {
  const uint64_t sign = (key >> 63) ? uint64_t{1} << 63 : ~uint64_t{0};
  return __longlong_as_double(static_cast<int64_t>(key ^ sign));
}

// `Width` adjacent lanes that work on one problem. All groups of a warp execute every call together, with or without
// work, because votes and shuffles involve the whole warp.
//
// An array of `Slots` values per lane represents Width * Slots values: index i is in lane i % Width, slot i / Width.
template <int Width>
struct Group {
  int lane;
  int first;  // first lane in the warp

  __device__ static Group here() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    return {lane % Width, lane / Width * Width};
  }

  __device__ unsigned ballot(bool vote) const {
    const unsigned votes = __ballot_sync(kAllLanes, vote);
    if constexpr (Width == kWarp) {
      return votes;
    } else {
      return (votes >> first) & ((1u << Width) - 1u);
    }
  }

  template <class T>
  __device__ T from(T value, int other) const {
    return __shfl_sync(kAllLanes, value, other, Width);
  }

  // Values in registers cannot be indexed, so each slot is tested. All slots are read unconditionally, otherwise the
  // compiler would take the address of one and move all of them to local memory.
  template <class T, int Slots>
  __device__ T at(const T (&values)[Slots], int index) const {
    T value = values[0];
#pragma unroll
    for (int s = 1; s < Slots; ++s) {
      const T other = values[s];
      value = static_cast<unsigned>(index) / Width == static_cast<unsigned>(s) ? other : value;
    }
    return from(value, static_cast<int>(static_cast<unsigned>(index) % Width));
  }

  template <class T, int Slots>
  __device__ void set(T (&values)[Slots], int index, T value) const {
#pragma unroll
    for (int s = 0; s < Slots; ++s) {
      const T before = values[s];
      values[s] = index == s * Width + lane ? value : before;
    }
  }

  __device__ unsigned least(unsigned value) const {
    if constexpr (Width == kWarp) {
      return __reduce_min_sync(kAllLanes, value);
    } else {
#pragma unroll
      for (int distance = Width / 2; distance > 0; distance /= 2) {
        const unsigned other = __shfl_xor_sync(kAllLanes, value, distance, Width);
        if (other < value) value = other;
      }
      return value;
    }
  }

  __device__ uint64_t least(uint64_t value) const {
    if constexpr (Width == kWarp) {
      const unsigned high = static_cast<unsigned>(value >> 32);
      const unsigned least_high = least(high);
      const unsigned least_low = least(high == least_high ? static_cast<unsigned>(value) : ~0u);
      return static_cast<uint64_t>(least_high) << 32 | least_low;
    } else {
#pragma unroll
      for (int distance = Width / 2; distance > 0; distance /= 2) {
        const uint64_t other = __shfl_xor_sync(kAllLanes, static_cast<unsigned long long>(value), distance, Width);
        if (other < value) value = other;
      }
      return value;
    }
  }
};

// 16-bit numbers as stored.
struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

__device__ inline float number(float value) { return value; }
__device__ inline double number(double value) { return value; }
__device__ inline float number(Bfloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
__device__ inline float number(Half value) {
  const unsigned magnitude = (value.bits & 0x7fffu) << 13;
  // 2^112 converts the exponent bias of a half to that of a float, also for subnormals; the largest is inf and NaN.
  const float finite = __uint_as_float(magnitude) * 0x1p112f;
  const float unsigned_value = magnitude >= 0x7c00u << 13 ? __uint_as_float(magnitude | 0x7f800000u) : finite;
  return value.bits & 0x8000u ? -unsigned_value : unsigned_value;
}

// Calls `run` with a null pointer to the type of `dtype`. Real is double only for float64, otherwise float, so that no
// kernel contains code for types it never processes.
template <class Real, class Run>
__device__ inline void with_type(Dtype dtype, Run run) {
  if constexpr (sizeof(Real) == sizeof(double)) {
    run(static_cast<const double*>(nullptr));
  } else {
    if (dtype == Dtype::float32) {
      run(static_cast<const float*>(nullptr));
    } else if (dtype == Dtype::float16) {
      run(static_cast<const Half*>(nullptr));
    } else {
      run(static_cast<const Bfloat16*>(nullptr));
    }
  }
}

constexpr float kLargestFloat = 0x1.fffffep127f;
constexpr double kLargestDouble = 0x1.fffffffffffffp1023;

__device__ inline bool is_finite(float value) { return value >= -kLargestFloat && value <= kLargestFloat; }
__device__ inline bool is_finite(double value) { return value >= -kLargestDouble && value <= kLargestDouble; }

// Costs beyond kHuge are scaled down by a power of two, so that sums of kMaxSize of them stay finite.
constexpr double kHuge = 0x1p1000;
constexpr double kShrink = 0x1p-24;

__device__ inline bool is_huge(float) { return false; }
__device__ inline bool is_huge(double value) { return value < -kHuge || (value > kHuge && value <= kLargestDouble); }

// Result of scanning all costs of a problem.
struct Range {
  bool invalid = false;    // NaN or -inf
  bool forbidden = false;  // +inf
  bool huge = false;

  template <class Real>
  __device__ void see(Real value) {
    const bool finite = is_finite(value);
    forbidden = forbidden || (!finite && value > 0);
    invalid = invalid || !(finite || value > 0);
    huge = huge || is_huge(value);
  }

  // Forbidden pairs are for optimal matchings only.
  __device__ bool unsolvable(Method method) const { return invalid || (forbidden && method == Method::greedy); }
};

constexpr double kInfinity = __builtin_huge_val();

// Kernels pad problems to squares with zeros, which change no optimum; this is the side of the square.
__host__ __device__ inline int size_of(const Problems& problems) {
  return problems.rows > problems.cols ? problems.rows : problems.cols;
}

// Launch parameters of a kernel.
struct Launch {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

constexpr int64_t blocks_for(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

}  // namespace art
