// The smallest cost first, then the smallest among the remaining rows and columns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "target.hpp"

namespace art::ART_TARGET {

class Greedy {
 public:
  static size_t bytes(int size, int) {
    return static_cast<size_t>(size) * (size * sizeof(double) + sizeof(double) + 4 * sizeof(int));
  }

  // `memory` has that many bytes, is aligned for float64, and outlives this object.
  Greedy(int size, int, void* memory) : size_(size) {
    cost_ = static_cast<double*>(memory);
    best_ = cost_ + static_cast<size_t>(size) * size;
    best_column_ = reinterpret_cast<int*>(best_ + size), column_of_ = best_column_ + size;
    rows_ = column_of_ + size, columns_ = rows_ + size;
  }

  // Storage of row i, filled by the caller.
  double* row(int i) const { return cost_ + static_cast<size_t>(i) * size_; }

  // Matches the rows; columns()[i] is the column of row i. Returns false if some costs are inf.
  bool solve(bool forbidden) {
    if (forbidden) return false;
    for (int i = 0; i < size_; ++i) rows_[i] = columns_[i] = i;
    for (int i = 0; i < size_; ++i) look(i, size_);
    for (int left = size_; left > 0; --left) {
      int taken = 0;
      for (int index = 1; index < left; ++index)
        if (best_[rows_[index]] < best_[rows_[taken]]) taken = index;
      const int i = rows_[taken], j = best_column_[i];
      column_of_[i] = j;
      remove(rows_, taken, left);
      int place = 0;
      while (columns_[place] != j) ++place;
      remove(columns_, place, left);
      for (int index = 0; index < left - 1; ++index)
        if (best_column_[rows_[index]] == j) look(rows_[index], left - 1);
    }
    return true;
  }

  const int* columns() const { return column_of_; }

 private:
  // The first of the cheapest remaining columns of a row.
  void look(int i, int left) {
    const double* cost = row(i);
    int best = columns_[0];
    for (int index = 1; index < left; ++index)
      if (cost[columns_[index]] < cost[best]) best = columns_[index];
    best_[i] = cost[best];
    best_column_[i] = best;
  }

  // Preserves the order, so that of equal costs the lowest row and column stay first.
  static void remove(int* list, int place, int count) {
    for (int index = place; index + 1 < count; ++index) list[index] = list[index + 1];
  }

  int size_;
  double *cost_, *best_;           // [size, size]; smallest cost of each row among the remaining columns
  int *best_column_, *column_of_;  // column of that cost; column assigned to a row
  int *rows_, *columns_;           // remaining rows and columns, in order
};

}  // namespace art::ART_TARGET
