// One problem of int64 costs in 128-bit integers, which hold every path length and dual variable: a path of n costs
// stays below n * 2^65. It is scalar code, for costs that float64 cannot represent.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "assignment.hpp"

namespace art {

// Shortest augmenting paths, as in shortest_paths.hpp without its reductions.
class ExactPaths {
 public:
  using Integer = __int128;

  // Costs of at most as many rows as columns: cost(i, j).
  ExactPaths(int rows, int cols)
      : rows_(rows), cols_(cols), v_(cols), reach_(cols), before_(cols), row_of_(cols, -1), column_of_(rows, -1),
        settled_(cols) {}

  template <class Cost>
  const std::vector<int>& solve(const Cost& cost) {
    for (int row = 0; row < rows_; ++row) augment(cost, row);
    return column_of_;
  }

 private:
  template <class Cost>
  void augment(const Cost& cost, int start) {
    for (int j = 0; j < cols_; ++j) reach_[j] = kUnreached, settled_[j] = false;
    Integer offset = 0;
    int end = nearest(cost, start, offset);
    while (row_of_[end] >= 0) {
      settled_[end] = true;
      const int i = row_of_[end];
      offset = cost(i, end) - v_[end] - reach_[end];
      end = nearest(cost, i, offset);
    }
    for (int j = 0; j < cols_; ++j)
      if (settled_[j]) v_[j] += reach_[j] - reach_[end];
    for (int i = -1; i != start;) {
      i = before_[end];
      row_of_[end] = i;
      std::swap(column_of_[i], end);
    }
  }

  // Shortens the paths to open columns by those through row i; of equally near columns a free one, if there is one.
  template <class Cost>
  int nearest(const Cost& cost, int i, Integer offset) {
    int best = -1;
    for (int j = 0; j < cols_; ++j) {
      if (settled_[j]) continue;
      const Integer reached = cost(i, j) - v_[j] - offset;
      if (reached < reach_[j]) reach_[j] = reached, before_[j] = i;
      const bool tied = best >= 0 && reach_[j] == reach_[best] && row_of_[j] < 0 && row_of_[best] >= 0;
      if (best < 0 || reach_[j] < reach_[best] || tied) best = j;
    }
    return best;
  }

  static constexpr Integer kUnreached = Integer{1} << 126;

  int rows_, cols_;
  std::vector<Integer> v_, reach_;
  std::vector<int> before_, row_of_, column_of_;
  std::vector<char> settled_;
};

// Fills the columns of problem `index`.
inline void solve_exactly(const Problems& problems, int64_t index) {
  const int rows = problems.rows, cols = problems.cols;
  const bool tall = rows > cols;  // solved transposed
  const int64_t* costs = static_cast<const int64_t*>(problems.cost) + index * rows * cols;
  int64_t* columns = problems.columns + index * rows;
  for (int i = 0; i < rows; ++i) columns[i] = -1;
  ExactPaths paths(tall ? cols : rows, tall ? rows : cols);
  const std::vector<int>& found = paths.solve([&](int i, int j) {
    const int64_t row = tall ? j : i, column = tall ? i : j;
    const ExactPaths::Integer cost = costs[row * cols + column];
    return problems.maximize ? -cost : cost;
  });
  for (int i = 0; i < static_cast<int>(found.size()); ++i) columns[tall ? found[i] : i] = tall ? i : found[i];
}

}  // namespace art
