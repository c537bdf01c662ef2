// Batches of problems on one thread: reads costs of any dtype and selects a solver by size.
#pragma once

#include "assignment.hpp"
#include "assignment_small.hpp"
#include "greedy.hpp"
#include "numbers.hpp"
#include "shortest_paths.hpp"
#include "simd.hpp"

namespace art::ART_TARGET {

// Larger costs are scaled down by a power of two, because their sums could overflow.
constexpr double kLarge = 0x1p1000, kShrink = 0x1p-40;

// Statistics of the costs read so far.
struct Seen {
  Numbers undefined{};  // NaN after a number that is not finite
  Numbers largest{};

  void see(Numbers costs) {
    undefined += costs - costs;
    const Numbers magnitude = costs < 0 ? -costs : costs;
    largest = magnitude > largest ? magnitude : largest;
  }

  bool all_finite() const {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += undefined[lane];
    return sum == 0;
  }

  bool large() const { return -least(-largest) > kLarge; }
};

enum class Content { finite, forbidden, invalid };  // forbidden: some are +inf; invalid: some are NaN or -inf

// Up to eight costs, padded with 0.
template <class Cost>
Numbers some_costs(const Cost* cost, int count, int64_t step, double sign) {
  double lanes[kLanes] = {};
  if (count >= kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = widened(cost[lane * step]);
  else
    for (int lane = 0; lane < count; ++lane) lanes[lane] = widened(cost[lane * step]);
  return load(lanes) * sign;
}

// The content of costs of which one is not finite, and whether a finite one is large.
template <class Solver>
Content examine(const Solver& solver, int rows, int cols, bool& large) {
  large = false;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      const double cost = solver.row(i)[j];
      if (!(cost > -kInfinity)) return Content::invalid;
      large = large || (cost < kInfinity && (cost > kLarge || cost < -kLarge));
    }
  }
  return Content::forbidden;
}

// Loads one problem into `solver`, transposed if it has more rows than columns.
template <bool Tall, class Cost, class Solver>
Content read(const Cost* cost, const Problems& problems, Solver& solver) {
  const int rows = Tall ? problems.cols : problems.rows, cols = Tall ? problems.rows : problems.cols;
  const int64_t row_step = Tall ? 1 : problems.cols, step = Tall ? problems.cols : 1;
  const double sign = problems.maximize ? -1.0 : 1.0;
  Seen seen;
  for (int i = 0; i < rows; ++i, cost += row_step) {
    double* row = solver.row(i);
    int j = 0;
    for (; j + kLanes <= cols; j += kLanes) {
      const Numbers costs = some_costs(cost + j * step, kLanes, step, sign);
      seen.see(costs);
      store(row + j, costs);
    }
    if (j < cols) {
      const Numbers costs = some_costs(cost + j * step, cols - j, step, sign);
      seen.see(costs);
      for (int lane = 0; j + lane < cols; ++lane) row[j + lane] = costs[lane];
    }
  }
  bool large = seen.large();
  const Content content = seen.all_finite() ? Content::finite : examine(solver, rows, cols, large);
  if (large)
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j) solver.row(i)[j] *= kShrink;
  if (problems.tie != 0)
    for (int i = 0; i < rows; ++i) solver.row(i)[i] -= problems.tie;
  return content;
}

template <bool Tall, class Solver, class Cost>
int64_t solve_each(const Problems& problems, int64_t begin, int64_t end, void* memory) {
  const int rows = problems.rows, cols = problems.cols;
  const int64_t numbers = static_cast<int64_t>(rows) * cols;
  const Cost* cost = static_cast<const Cost*>(problems.cost);
  Solver solver(Tall ? cols : rows, Tall ? rows : cols, memory);
  int64_t bad = -1;
  for (int64_t problem = begin; problem < end; ++problem) {
    int64_t* columns = problems.columns + problem * rows;
    const Content content = read<Tall>(cost + problem * numbers, problems, solver);
    const bool good = content != Content::invalid && solver.solve(content == Content::forbidden);
    for (int i = 0; i < rows; ++i) columns[i] = good && !Tall ? solver.columns()[i] : -1;
    for (int j = 0; Tall && good && j < cols; ++j) columns[solver.columns()[j]] = j;
    if (!good && bad < 0) bad = problem;
  }
  return bad;
}

inline bool any_of(Integers lanes) {
  int64_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= lanes[lane];
  return any != 0;
}

// Scales down the problems with large finite costs.
template <int K>
void shrink_large(Numbers* matrix) {
  Integers beyond{};
  for (int at = 0; at < K * K; ++at) beyond |= (matrix[at] > kLarge) | (matrix[at] < -kLarge);
  if (!any_of(beyond)) return;
  Numbers shrink = all(1.0);
  for (int at = 0; at < K * K; ++at) {
    const Integers large = ((matrix[at] > kLarge) & (matrix[at] < kInfinity)) | (matrix[at] < -kLarge);
    shrink = large ? all(kShrink) : shrink;
  }
  for (int at = 0; at < K * K; ++at) matrix[at] *= shrink;
}

// One square problem per lane; the last problems are repeated to fill the lanes.
template <int K, class Cost>
int64_t solve_small(const Problems& problems, int64_t begin, int64_t end) {
  const Cost* cost = static_cast<const Cost*>(problems.cost);
  const double sign = problems.maximize ? -1.0 : 1.0;
  int64_t bad = -1;
  for (int64_t first = begin; first < end; first += kLanes) {
    const int count = end - first < kLanes ? static_cast<int>(end - first) : kLanes;
    double lanes[K * K][kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const Cost* of_lane = cost + (first + (lane < count ? lane : count - 1)) * K * K;
      for (int at = 0; at < K * K; ++at) lanes[at][lane] = sign * widened(of_lane[at]);
    }
    Numbers matrix[K * K], undefined{};
    for (int at = 0; at < K * K; ++at) {
      matrix[at] = load(lanes[at]);
      undefined += matrix[at] - matrix[at];
    }
    if constexpr (sizeof(Cost) == sizeof(double)) shrink_large<K>(matrix);
    if (problems.tie != 0)
      for (int row = 0; row < K; ++row) matrix[row * K + row] -= problems.tie;
    const auto best = match_few<K>(matrix);
    Integers good = undefined == all(0.0);
    if (any_of(~good)) {
      good = best.sum < kInfinity;
      for (int at = 0; at < K * K; ++at) good &= matrix[at] > -kInfinity;
      for (int lane = 0; bad < 0 && lane < count; ++lane)
        if (!good[lane]) bad = first + lane;
    }
    for (int row = 0; row < K; ++row) {
      const Integers columns = good ? best.columns[row] : all(static_cast<int64_t>(-1));
      for (int lane = 0; lane < count; ++lane) problems.columns[(first + lane) * K + row] = columns[lane];
    }
  }
  return bad;
}

template <class Cost>
int64_t solve_of(const Problems& problems, int64_t begin, int64_t end, void* memory) {
  if (problems.method == Method::greedy) return solve_each<false, Greedy, Cost>(problems, begin, end, memory);
  if (problems.rows > problems.cols) return solve_each<true, ShortestPaths, Cost>(problems, begin, end, memory);
  switch (problems.rows == problems.cols ? problems.rows : 0) {
    case 1:
      return solve_small<1, Cost>(problems, begin, end);
    case 2:
      return solve_small<2, Cost>(problems, begin, end);
    case 3:
      return solve_small<3, Cost>(problems, begin, end);
    case 4:
      return solve_small<4, Cost>(problems, begin, end);
    default:
      return solve_each<false, ShortestPaths, Cost>(problems, begin, end, memory);
  }
}

inline size_t solve_bytes(int rows, int cols, Method method) {
  if (method == Method::greedy) return Greedy::bytes(rows, cols);
  if (rows == cols && rows <= kMaxEnumerated) return 0;
  return rows > cols ? ShortestPaths::bytes(cols, rows) : ShortestPaths::bytes(rows, cols);
}

// For costs of the floating-point dtypes.
inline int64_t solve(const Problems& problems, int64_t begin, int64_t end, void* memory) {
  switch (problems.dtype) {
    case Dtype::float32:
      return solve_of<float>(problems, begin, end, memory);
    case Dtype::float64:
      return solve_of<double>(problems, begin, end, memory);
    case Dtype::float16:
      return solve_of<Half>(problems, begin, end, memory);
    case Dtype::bfloat16:
      return solve_of<Bfloat16>(problems, begin, end, memory);
    case Dtype::int64:
      break;
  }
  __builtin_unreachable();
}

}  // namespace art::ART_TARGET
