// Conversion between double and the dtypes of the kernels, and naive solutions to compare the kernels with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "assignment.hpp"

namespace naive {

using art::Dtype;

inline int bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }
inline const char* name_of(Dtype dtype) {
  static const char* const kNames[] = {"float32", "float64", "float16", "bfloat16"};
  return kNames[static_cast<int>(dtype)];
}
inline double largest_of(Dtype dtype) {
  static const double kLargest[] = {3.4e38, 1.79e308, 65504.0, 3.38e38};
  return kLargest[static_cast<int>(dtype)];
}
inline double smallest_of(Dtype dtype) {  // subnormal
  static const double kSmallest[] = {0x1p-149, 0x1p-1074, 0x1p-24, 0x1p-133};
  return kSmallest[static_cast<int>(dtype)];
}

// The bits of a 16-bit number with a `mantissa`-bit fraction and this smallest normal exponent.
inline uint16_t encode16(double value, int mantissa, int least_exponent) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const int top = ((1 << (15 - mantissa)) - 1) << mantissa;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | top | 1 << (mantissa - 1));
  if (std::isinf(value)) return static_cast<uint16_t>(sign | top);
  const double magnitude = std::fabs(value);
  int exponent = least_exponent;
  if (magnitude >= std::ldexp(1.0, least_exponent)) exponent = std::ilogb(magnitude);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, mantissa - exponent)));
  // The bits of positive numbers are consecutive across exponents.
  const int bits = ((exponent - least_exponent) << mantissa) + steps;
  return static_cast<uint16_t>(sign | (bits < top ? bits : top));
}

inline double decode16(uint16_t bits, int mantissa, int least_exponent) {
  const int magnitude = bits & 0x7fff;
  const int field = magnitude >> mantissa;
  const int fraction = magnitude & ((1 << mantissa) - 1);
  double value = field == 0 ? std::ldexp(fraction, least_exponent - mantissa)
                            : std::ldexp(fraction + (1 << mantissa), field - 1 + least_exponent - mantissa);
  if (field == (1 << (15 - mantissa)) - 1) value = fraction != 0 ? std::nan("") : HUGE_VAL;
  return bits & 0x8000 ? -value : value;
}

inline void encode(Dtype dtype, double value, char* to) {
  if (dtype == Dtype::float64) {
    std::memcpy(to, &value, 8);
  } else if (dtype == Dtype::float32) {
    const float rounded = static_cast<float>(value);
    std::memcpy(to, &rounded, 4);
  } else {
    const uint16_t bits = dtype == Dtype::float16 ? encode16(value, 10, -14) : encode16(value, 7, -126);
    std::memcpy(to, &bits, 2);
  }
}

inline double decode(Dtype dtype, const char* from) {
  if (dtype == Dtype::float64) {
    double value;
    std::memcpy(&value, from, 8);
    return value;
  }
  if (dtype == Dtype::float32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return dtype == Dtype::float16 ? decode16(bits, 10, -14) : decode16(bits, 7, -126);
}

using Matrix = std::vector<double>;

inline long double sum_of(const Matrix& cost, int size, const int64_t* columns) {
  long double sum = 0;
  for (int i = 0; i < size; ++i) sum += cost[i * size + columns[i]];
  return sum;
}

// The costs of a problem padded to a square of side `size` with zeros, with `forbidden` instead of inf.
inline Matrix padded(const Matrix& cost, int rows, int cols, int size, double forbidden) {
  Matrix square(static_cast<size_t>(size) * size, 0.0);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      const double value = cost[i * cols + j];
      square[i * size + j] = value == HUGE_VAL ? forbidden : value;
    }
  }
  return square;
}

inline bool is_permutation(const int64_t* columns, int size) {
  std::vector<bool> seen(size, false);
  for (int i = 0; i < size; ++i) {
    if (columns[i] < 0 || columns[i] >= size || seen[columns[i]]) return false;
    seen[columns[i]] = true;
  }
  return true;
}

// The Hungarian method with potentials of rows and columns, in long double, in which sums of doubles cannot overflow.
inline long double least_sum(const Matrix& cost, int size) {
  constexpr long double kInfinity = std::numeric_limits<long double>::infinity();
  std::vector<long double> of_row(size + 1, 0), of_column(size + 1, 0);
  std::vector<int> row_of(size + 1, 0), before(size + 1, 0);  // 1-based; column 0 is the start of a path
  for (int row = 1; row <= size; ++row) {
    row_of[0] = row;
    int column = 0;
    std::vector<long double> slack(size + 1, kInfinity);
    std::vector<bool> closed(size + 1, false);
    do {
      closed[column] = true;
      int nearest = 0;
      long double least = kInfinity;
      for (int j = 1; j <= size; ++j) {
        if (closed[j]) continue;
        const int i = row_of[column];
        const long double reduced = cost[(i - 1) * size + j - 1] - of_row[i] - of_column[j];
        if (reduced < slack[j]) slack[j] = reduced, before[j] = column;
        if (slack[j] < least) least = slack[j], nearest = j;
      }
      for (int j = 0; j <= size; ++j) {
        if (closed[j]) {
          of_row[row_of[j]] += least, of_column[j] -= least;
        } else {
          slack[j] -= least;
        }
      }
      column = nearest;
    } while (row_of[column] != 0);
    for (; column != 0; column = before[column]) row_of[column] = row_of[before[column]];
  }
  long double sum = 0;
  for (int j = 1; j <= size; ++j) sum += cost[(row_of[j] - 1) * size + j - 1];
  return sum;
}

// The smallest cost first; of equal costs the one in the lowest row, then in the lowest column.
inline std::vector<int64_t> least_first(const Matrix& cost, int size) {
  std::vector<int64_t> columns(size, -1);
  std::vector<bool> taken(size, false);
  for (int round = 0; round < size; ++round) {
    int row = -1, column = -1;
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size && columns[i] < 0; ++j) {
        if (!taken[j] && (row < 0 || cost[i * size + j] < cost[row * size + column])) row = i, column = j;
      }
    }
    columns[row] = column, taken[column] = true;
  }
  return columns;
}

// Whether each match of a greedy matching, best first, is within `tolerance` of the smallest remaining cost.
inline bool is_least_first(const Matrix& cost, int size, const int64_t* columns, double tolerance) {
  std::vector<bool> row_done(size, false), column_done(size, false);
  for (int round = 0; round < size; ++round) {
    int row = -1;
    double least = HUGE_VAL;
    for (int i = 0; i < size; ++i) {
      if (row_done[i]) continue;
      if (row < 0 || cost[i * size + columns[i]] < cost[row * size + columns[row]]) row = i;
      for (int j = 0; j < size; ++j) {
        if (!column_done[j] && cost[i * size + j] < least) least = cost[i * size + j];
      }
    }
    if (cost[row * size + columns[row]] > least + tolerance) return false;
    row_done[row] = column_done[columns[row]] = true;
  }
  return true;
}

}  // namespace naive
