// Costs of any dtype as float64, which holds each exactly.
#pragma once

#include <cstdint>

#include "target.hpp"

namespace art::ART_TARGET {

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

inline double widened(double value) { return value; }
inline double widened(float value) { return value; }

inline double widened(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  __builtin_memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

inline double widened(Half value) {
  // Exponent and mantissa move to their places in a float; the difference of the biases, 112, is a factor that makes
  // subnormal numbers right too. The largest exponent means NaN or inf in either.
  const uint32_t magnitude = value.bits & 0x7fffu, sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  uint32_t bits = magnitude << 13;
  float wide;
  if (magnitude >= 0x7c00u) {
    bits |= 0x7f800000u;
    __builtin_memcpy(&wide, &bits, sizeof(wide));
  } else {
    __builtin_memcpy(&wide, &bits, sizeof(wide));
    wide *= 0x1p112f;
  }
  __builtin_memcpy(&bits, &wide, sizeof(bits));
  bits |= sign;
  __builtin_memcpy(&wide, &bits, sizeof(wide));
  return wide;
}

}  // namespace art::ART_TARGET
