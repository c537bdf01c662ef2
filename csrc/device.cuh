// What the kernels use of a device: lanes that work as one, shared memory, and numbers of any dtype read as they lie.
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

// Unsigned numbers in the order of the doubles (NaN aside), and back: integers have fast minima.
__device__ inline uint64_t ordered(double value) {
  const int64_t bits = __double_as_longlong(value);
  return static_cast<uint64_t>(bits) ^ (static_cast<uint64_t>(bits >> 63) | (uint64_t{1} << 63));
}

__device__ inline double from_ordered(uint64_t key) {
  const uint64_t sign = (key >> 63) ? uint64_t{1} << 63 : ~uint64_t{0};
  return __longlong_as_double(static_cast<int64_t>(key ^ sign));
}

// `Width` neighbouring lanes that work on one problem. The groups of a warp go through every call together, with work
// or without: all votes and shuffles are of the whole warp.
//
// An array of `Slots` values in each lane is one of Width * Slots values: index i is in lane i % Width, slot i / Width.
template <int Width>
struct Group {
  int lane;
  int first;  // lane of the warp

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

  // Values in registers cannot be indexed: each slot is asked in turn. All are read in any case, lest the compiler take
  // the address of one, and with it all to local memory.
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

// Numbers of 16 bits, as they lie in memory.
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
  // 2^112 moves the exponent from a half's bias to a float's, subnormal halves included; the topmost is inf and NaN.
  const float finite = __uint_as_float(magnitude) * 0x1p112f;
  const float unsigned_value = magnitude >= 0x7c00u << 13 ? __uint_as_float(magnitude | 0x7f800000u) : finite;
  return value.bits & 0x8000u ? -unsigned_value : unsigned_value;
}

// Calls `run` with a null pointer to the type that holds `dtype`. Real is double for float64 alone, and else float, so
// that no kernel holds code for types it never sees.
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
__device__ inline bool is_huge(double value) { return value > kHuge || value < -kHuge; }

// What a look at all costs of a problem tells.
struct Range {
  bool finite = true;
  bool huge = false;

  template <class Real>
  __device__ void see(Real value) {
    finite = finite && is_finite(value);
    huge = huge || is_huge(value);
  }
};

constexpr double kInfinity = __builtin_huge_val();

// How a kernel is launched.
struct Launch {
  int64_t blocks;
  int threads;
  int shared_bytes;
};

constexpr int64_t blocks_for(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

}  // namespace art
