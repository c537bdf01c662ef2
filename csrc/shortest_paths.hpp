// One problem of any size, after Jonker and Volgenant (1987): columns take their cheapest rows, remaining rows try to
// take a column from another row, and rows still unmatched are matched along shortest augmenting paths.
//
// v[j] is the dual variable of column j; that of a row i follows from its column. Throughout, the column of each
// matched row minimizes the reduced cost cost[i, j] - v[j] of that row. With more columns than rows, v starts at 0,
// because it must stay 0 for columns that no row takes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.hpp"

namespace art::ART_TARGET {

class ShortestPaths {
 public:
  // Bytes of scratch memory for a problem of this size.
  static size_t bytes(int rows, int cols) {
    const size_t padded = vectors_of(cols) * kLanes;
    return padded * ((rows + 3) * sizeof(double) + 2 * sizeof(int64_t)) + rows * (3 * sizeof(int) + sizeof(Settled));
  }

  // At most as many rows as columns. `memory` has that many bytes, is aligned for float64, and outlives this object.
  ShortestPaths(int rows, int cols, void* memory) : rows_(rows), cols_(cols), padded_(vectors_of(cols) * kLanes) {
    double* numbers = static_cast<double*>(memory);
    auto take = [&](size_t count) { return numbers += count, numbers - count; };
    cost_ = take(static_cast<size_t>(rows) * padded_);
    v_ = take(padded_), reach_ = take(padded_), open_v_ = take(padded_);
    settled_ = reinterpret_cast<Settled*>(take(rows * sizeof(Settled) / sizeof(double)));
    before_ = reinterpret_cast<int64_t*>(numbers), row_of_ = before_ + padded_;
    column_of_ = reinterpret_cast<int*>(row_of_ + padded_), takers_ = column_of_ + rows, free_ = takers_ + rows;
    // The padding columns of the last vector are never chosen.
    for (int i = 0; i < rows; ++i)
      for (int j = cols; j < padded_; ++j) row(i)[j] = kInfinity;
  }

  // Storage of row i, filled by the caller.
  double* row(int i) const { return cost_ + static_cast<size_t>(i) * padded_; }

  // Matches the rows; columns()[i] is the column of row i. `forbidden`: some costs are inf, and the result is whether
  // all rows can be matched. The reductions are for finite costs only, because they subtract them.
  bool solve(bool forbidden) {
    if (rows_ == cols_ && !forbidden) {
      reduce_columns();
      transfer_reductions();
    } else {
      start_unmatched();
    }
    // Twice, because a row that loses its column may find another one that is equally good.
    for (int pass = 0; pass < 2 && free_count_ > 0 && !forbidden; ++pass) reduce_rows();
    for (int index = 0; index < free_count_; ++index)
      if (!augment(free_[index])) return false;
    return true;
  }

  const int* columns() const { return column_of_; }

 private:
  struct Settled {
    int64_t column;
    double distance;
  };

  struct TwoLeast {
    double least, second;
    int column, second_column;
  };

  void start_unmatched() {
    for (int j = 0; j < padded_; ++j) v_[j] = 0, row_of_[j] = j < cols_ ? -1 : 0;
    for (int i = 0; i < rows_; ++i) column_of_[i] = -1, free_[i] = i;
    free_count_ = rows_;
  }

  // v[j] is the minimal cost of column j. Its row takes the last such column.
  void reduce_columns() {
    for (int at = 0; at < padded_; at += kLanes) {
      Numbers best = load(row(0) + at);
      Integers best_row{};
      for (int i = 1; i < rows_; ++i) {
        const Numbers other = load(row(i) + at);
        const Integers better = other < best;
        best = better ? other : best;
        best_row = better ? all(static_cast<int64_t>(i)) : best_row;
      }
      store(v_ + at, best);
      store(before_ + at, best_row);
    }
    for (int i = 0; i < rows_; ++i) column_of_[i] = -1, takers_[i] = 0;
    for (int j = cols_ - 1; j >= 0; --j) {
      const int i = static_cast<int>(before_[j]);
      row_of_[j] = takers_[i]++ == 0 ? i : -1;
      if (row_of_[j] >= 0) column_of_[i] = j;
    }
    for (int j = cols_; j < padded_; ++j) v_[j] = 0;  // inf - 0 stays inf
  }

  // A row that is the cheapest of only one column can lower v[j] until its second-best column is equally good.
  void transfer_reductions() {
    free_count_ = 0;
    for (int i = 0; i < rows_; ++i) {
      if (takers_[i] == 0) {
        free_[free_count_++] = i;
      } else if (takers_[i] == 1 && cols_ > 1) {
        const int j = column_of_[i];
        v_[j] -= least_reduced(i, j);
      }
    }
  }

  // The minimal reduced cost of a row, excluding one column.
  double least_reduced(int i, int without) {
    const double kept = row(i)[without];
    row(i)[without] = kInfinity;
    Numbers best = all(kInfinity);
    for (int at = 0; at < padded_; at += kLanes) best = smaller(best, load(row(i) + at) - load(v_ + at));
    row(i)[without] = kept;
    return least(best);
  }

  TwoLeast two_least(int i) const {
    const double* cost = row(i);
    Numbers best = all(kInfinity), second = all(kInfinity);
    Integers column{}, second_column{}, here{0, 1, 2, 3, 4, 5, 6, 7};
    for (int at = 0; at < padded_; at += kLanes, here += kLanes) {
      const Numbers reduced = load(cost + at) - load(v_ + at);
      const Integers first = reduced < best, next = reduced < second;
      second_column = first ? column : (next ? here : second_column);
      second = first ? best : (next ? reduced : second);
      column = first ? here : column;
      best = first ? reduced : best;
    }
    TwoLeast found;
    found.least = least(best);
    const int lane = first_equal(best, found.least);
    found.column = static_cast<int>(column[lane]);
    // The second smallest is the second of that lane, or the smallest of another lane.
    best[lane] = second[lane];
    column[lane] = second_column[lane];
    found.second = least(best);
    found.second_column = static_cast<int>(column[first_equal(best, found.second)]);
    return found;
  }

  // Each free row takes its cheapest column, which frees that column's row, at a price that makes its second equally
  // good.
  void reduce_rows() {
    int left = 0, current = 0, tries = 0;
    const int count = free_count_, patience = rows_ / 4;  // the remaining rows are matched faster along paths
    while (current < count) {
      const int i = free_[current++];
      TwoLeast found = two_least(i);
      const double lowered = v_[found.column] - (found.second - found.least);
      const bool lowers = lowered < v_[found.column];  // rounding can cancel the difference
      int j = found.column;
      if (lowers)
        v_[j] = lowered;
      else if (row_of_[j] >= 0)
        j = found.second_column;
      const int loser = static_cast<int>(row_of_[j]);
      row_of_[j] = i;
      column_of_[i] = j;
      if (loser < 0) continue;
      column_of_[loser] = -1;
      if (lowers && ++tries < patience)
        free_[--current] = loser;  // immediately, while its costs are in cache
      else
        free_[left++] = loser;
    }
    free_count_ = left;
  }

  // Dijkstra's algorithm from a free row to the nearest free column, over reduced costs; then every row on the path
  // takes the next column. Returns false if every path is forbidden.
  bool augment(int start) {
    for (int at = 0; at < padded_; at += kLanes) {
      store(reach_ + at, all(kInfinity));
      store(open_v_ + at, load(v_ + at));
    }
    int settled = 0, i = start, j;
    double offset = 0, distance;
    while (true) {
      j = relax(i, offset, distance);
      if (distance == kInfinity) return false;
      if (row_of_[j] < 0) break;
      settled_[settled++] = {j, distance};
      i = static_cast<int>(row_of_[j]);
      offset = row(i)[j] - v_[j] - distance;
      reach_[j] = kInfinity;
      open_v_[j] = -kInfinity;  // makes it farther than inf from every row
    }
    for (int index = 0; index < settled; ++index) v_[settled_[index].column] += settled_[index].distance - distance;
    do {
      i = static_cast<int>(before_[j]);
      row_of_[j] = i;
      const int next = column_of_[i];
      column_of_[i] = j;
      j = next;
    } while (i != start);
    return true;
  }

  // Shortens the paths to open columns by those through row i, and returns the nearest open column; of equally near
  // ones a free column, where the path ends, if there is one.
  int relax(int i, double offset, double& distance) {
    const double* cost = row(i);
    Numbers best = all(kInfinity);
    Integers best_column{}, here{0, 1, 2, 3, 4, 5, 6, 7};
    const Integers through = all(static_cast<int64_t>(i));
    for (int at = 0; at < padded_; at += kLanes, here += kLanes) {
      const Numbers reached = load(cost + at) - load(open_v_ + at) - offset;
      Numbers reach = load(reach_ + at);
      const Integers shorter = reached < reach;
      reach = shorter ? reached : reach;
      store(reach_ + at, reach);
      store(before_ + at, shorter ? through : load(before_ + at));
      const Integers nearer = (reach < best) | ((reach == best) & (load(row_of_ + at) < 0));
      best = nearer ? reach : best;
      best_column = nearer ? here : best_column;
    }
    distance = least(best);
    int64_t columns[kLanes];
    store(columns, best_column);
    int lane = first_equal(best, distance);
    for (int other = lane + 1; row_of_[columns[lane]] >= 0 && other < kLanes; ++other)
      if (best[other] == distance && row_of_[columns[other]] < 0) lane = other;
    return static_cast<int>(columns[lane]);
  }

  static int vectors_of(int size) { return (size + kLanes - 1) / kLanes; }

  int rows_, cols_, padded_, free_count_ = 0;
  double *cost_, *v_;
  double *reach_, *open_v_;     // path length of an open column, inf if settled; v of an open column, else -inf
  int64_t *before_, *row_of_;   // row before a column on its path; row of a column, or -1
  int *column_of_, *takers_;    // column of a row, or -1; number of columns that a row is the cheapest of
  int* free_;                   // rows without a column
  Settled* settled_;
};

}  // namespace art::ART_TARGET
