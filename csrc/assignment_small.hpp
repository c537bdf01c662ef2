// Up to four rows: compares all matchings, of one problem per lane.
#pragma once

#include "simd.hpp"

namespace art::ART_TARGET {

// In each lane, the minimal sum and the columns of rows 0 to K - 1.
template <int K>
struct Matching {
  Numbers sum;
  Integers columns[K];
};

template <int K>
inline void keep_better(Matching<K>& best, const Matching<K>& other) {
  const Integers better = other.sum < best.sum;
  best.sum = better ? other.sum : best.sum;
  for (int row = 0; row < K; ++row) best.columns[row] = better ? other.columns[row] : best.columns[row];
}

inline Integers column(int64_t index) { return all(index); }

// Rows `first` and `first + 1` of a matrix [size, size], in columns a and b.
inline Matching<2> match_two(const Numbers* cost, int size, int first, int a, int b) {
  const Numbers *upper = cost + first * size, *lower = upper + size;
  Matching<2> best{upper[a] + lower[b], {column(a), column(b)}};
  keep_better(best, Matching<2>{upper[b] + lower[a], {column(b), column(a)}});
  return best;
}

// `cost` is [K, K].
template <int K>
inline Matching<K> match_few(const Numbers* cost) {
  if constexpr (K == 1) {
    return {cost[0], {column(0)}};
  } else if constexpr (K == 2) {
    return match_two(cost, 2, 0, 0, 1);
  } else if constexpr (K == 3) {
    Matching<3> best{all(kInfinity), {}};
    for (int last = 0; last < 3; ++last) {
      const auto two = match_two(cost, 3, 0, last == 0 ? 1 : 0, last == 2 ? 1 : 2);
      keep_better(best, Matching<3>{two.sum + cost[6 + last], {two.columns[0], two.columns[1], column(last)}});
    }
    return best;
  } else {
    static_assert(K == 4);
    Matching<4> best{all(kInfinity), {}};
    // Two columns for the upper rows, the other two for the lower rows.
    for (int a = 0; a < 3; ++a) {
      for (int b = a + 1; b < 4; ++b) {
        const int c = a > 0 ? 0 : (b > 1 ? 1 : 2), d = 6 - a - b - c;
        const auto upper = match_two(cost, 4, 0, a, b), lower = match_two(cost, 4, 2, c, d);
        keep_better(best, Matching<4>{upper.sum + lower.sum,
                                      {upper.columns[0], upper.columns[1], lower.columns[0], lower.columns[1]}});
      }
    }
    return best;
  }
}

}  // namespace art::ART_TARGET
