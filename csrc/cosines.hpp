// Cosines of all pairs of responses of two frames: dot products divided by both norms.
#pragma once

#include <cstdint>

#include "target.hpp"

namespace art::ART_TARGET {

// Replaces a NaN cosine: below all others, and comparable.
constexpr int kIncomparable = -2;

template <class Real>
Real cosine_of(Real cosine) {
  return cosine == kIncomparable ? static_cast<Real>(__builtin_nan("")) : cosine;
}

// Values of one register.
#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

// Sum of all lanes: adds halves until at most four remain.
template <class Real, int Bytes>
Real sum_of(const char* lanes) {
  if constexpr (Bytes <= 16) {
    Real values[Bytes / sizeof(Real)], sum = 0;
    __builtin_memcpy(values, lanes, Bytes);
    for (const Real value : values) sum += value;
    return sum;
  } else {
    typedef Real Half __attribute__((vector_size(Bytes / 2)));
    Half lower, upper;
    __builtin_memcpy(&lower, lanes, Bytes / 2);
    __builtin_memcpy(&upper, lanes + Bytes / 2, Bytes / 2);
    lower += upper;
    return sum_of<Real, Bytes / 2>(reinterpret_cast<const char*>(&lower));
  }
}

// Channels that fill a register.
template <class Real>
struct Channels {
  static constexpr int kCount = kRegister / sizeof(Real);
  typedef Real Vector __attribute__((vector_size(kRegister)));

  static Vector all(const Real* channels) {
    Vector vector;
    __builtin_memcpy(&vector, channels, sizeof(vector));
    return vector;
  }

  // The first channels, padded with zeros.
  static Vector some(const Real* channels, int count) {
    Vector vector{};
    for (int at = 0; at < count; ++at) vector[at] = channels[at];
    return vector;
  }

  // Calls add(load) for all `count` channels; load(response) reads the next channels of a response.
  template <class Add>
  static void for_each(int count, const Add& add) {
    int first = 0;
    for (; first + kCount <= count; first += kCount) add([&](const Real* response) { return all(response + first); });
    if (first < count) add([&](const Real* response) { return some(response + first, count - first); });
  }

  static Real sum(const Vector& vector) { return sum_of<Real, kRegister>(reinterpret_cast<const char*>(&vector)); }
};

template <class Real>
struct Frames {
  const Real *here, *next;  // [size, channels] each
  int64_t stride;
  int size, channels;
};

// Rows x Columns dot products, starting at response `row` of one frame and `column` of the next; each loaded value is
// used several times.
template <int Rows, int Columns, class Real>
void take_tile(const Frames<Real>& frames, int row, int column, Real* products) {
  using Of = Channels<Real>;
  const Real *here = frames.here + row * frames.stride, *next = frames.next + column * frames.stride;
  typename Of::Vector sums[Rows][Columns] = {};
  Of::for_each(frames.channels, [&](const auto& load) {
    typename Of::Vector of_next[Columns];
    for (int c = 0; c < Columns; ++c) of_next[c] = load(next + c * frames.stride);
    for (int r = 0; r < Rows; ++r) {
      const auto of_here = load(here + r * frames.stride);
      for (int c = 0; c < Columns; ++c) sums[r][c] += of_here * of_next[c];
    }
  });
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < Columns; ++c)
      products[static_cast<int64_t>(row + r) * frames.size + column + c] = Of::sum(sums[r][c]);
}

template <int Rows, class Real>
void take_rows(const Frames<Real>& frames, int row, Real* products) {
  int column = 0;
  for (; column + 4 <= frames.size; column += 4) take_tile<Rows, 4>(frames, row, column, products);
  for (; column + 2 <= frames.size; column += 2) take_tile<Rows, 2>(frames, row, column, products);
  if (column < frames.size) take_tile<Rows, 1>(frames, row, column, products);
}

template <class Real>
Real norm(const Real* response, int channels) {
  using Of = Channels<Real>;
  typename Of::Vector sums{};
  Of::for_each(channels, [&](const auto& load) {
    const auto vector = load(response);
    sums += vector * vector;
  });
  const Real square = Of::sum(sums);
  // The infinite norm makes the cosines of a zero vector 0.
  const Real least_normal = sizeof(Real) == sizeof(double) ? static_cast<Real>(0x1p-1022) : static_cast<Real>(0x1p-126);
  return square < least_normal ? static_cast<Real>(__builtin_huge_val()) : static_cast<Real>(__builtin_sqrt(square));
}

// Fills `cosines` [size, size]; `norms` holds 2 * size values.
template <class Real>
void take_cosines(const Frames<Real>& frames, Real* norms, Real* cosines) {
  const int size = frames.size;
  for (int k = 0; k < size; ++k) {
    norms[k] = norm(frames.here + k * frames.stride, frames.channels);
    norms[size + k] = norm(frames.next + k * frames.stride, frames.channels);
  }
  int row = 0;
  for (; row + 2 <= size; row += 2) take_rows<2>(frames, row, cosines);
  if (row < size) take_rows<1>(frames, row, cosines);
  for (row = 0; row < size; ++row) {
    Real* of_row = cosines + static_cast<int64_t>(row) * size;
    for (int column = 0; column < size; ++column) {
      const Real cosine = of_row[column] / norms[row] / norms[size + column];
      of_row[column] = cosine - cosine == 0 ? cosine : static_cast<Real>(kIncomparable);
    }
  }
}

}  // namespace art::ART_TARGET
