// Costs of any dtype as float64, which represents each exactly.
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
  // Moves exponent and mantissa to their positions in a float; multiplying by 2^112, the difference of the biases, also
  // makes subnormal numbers correct. The largest exponent means NaN or inf in both formats.
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
