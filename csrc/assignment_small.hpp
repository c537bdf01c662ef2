// Up to four rows: all matchings are compared, of as many problems at once as `Number` has lanes.
#pragma once

#include "target.hpp"

namespace art::ART_TARGET {

constexpr int kMaxEnumerated = 4;

// The least sum, and the columns that rows 0 to K - 1 take in it. `Number` and `Index` are vectors of
// float64 and of integers, whose comparison chooses lane by lane.
template <int K, class Number, class Index>
struct Matching {
  Number sum;
  Index columns[K];
};

template <int K, class Number, class Index>
inline void keep_better(Matching<K, Number, Index>& best, const Matching<K, Number, Index>& other) {
  const auto better = other.sum < best.sum;
  best.sum = better ? other.sum : best.sum;
  for (int row = 0; row < K; ++row) best.columns[row] = better ? other.columns[row] : best.columns[row];
}

// Rows `first` and the next one, over columns a and b.
template <class Number, class Index>
inline Matching<2, Number, Index> match_two(
    const Number* cost, int size, int first, int a, int b, Index zero) {
  const Number *upper = cost + first * size, *lower = upper + size;
  Matching<2, Number, Index> best{upper[a] + lower[b], {zero + a, zero + b}};
  keep_better(best, Matching<2, Number, Index>{upper[b] + lower[a], {zero + b, zero + a}});
  return best;
}

// `cost` is [K, K]; `zero` is an index of zeros, which says how many lanes there are.
template <int K, class Number, class Index>
inline Matching<K, Number, Index> match_few(const Number* cost, Index zero) {
  if constexpr (K == 1) {
    return {cost[0], {zero}};
  } else if constexpr (K == 2) {
    return match_two(cost, 2, 0, 0, 1, zero);
  } else if constexpr (K == 3) {
    Matching<3, Number, Index> best{};
    for (int last = 0; last < 3; ++last) {
      const auto two = match_two(cost, 3, 0, last == 0 ? 1 : 0, last == 2 ? 1 : 2, zero);
      const Matching<3, Number, Index> three{two.sum + cost[6 + last], {two.columns[0], two.columns[1], zero + last}};
      if (last == 0)
        best = three;
      else
        keep_better(best, three);
    }
    return best;
  } else {
    static_assert(K == 4);
    Matching<4, Number, Index> best{};
    // Two columns for the upper rows, the other two for the lower ones.
    for (int a = 0; a < 3; ++a) {
      for (int b = a + 1; b < 4; ++b) {
        const int c = a > 0 ? 0 : (b > 1 ? 1 : 2), d = 6 - a - b - c;
        const auto upper = match_two(cost, 4, 0, a, b, zero), lower = match_two(cost, 4, 2, c, d, zero);
        const Matching<4, Number, Index> four{
            upper.sum + lower.sum, {upper.columns[0], upper.columns[1], lower.columns[0], lower.columns[1]}};
        if (a == 0 && b == 1)
          best = four;
        else
          keep_better(best, four);
      }
    }
    return best;
  }
}

}  // namespace art::ART_TARGET
