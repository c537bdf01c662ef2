// Assignment problems that are difficult in different ways, and whether they are solved.
#pragma once

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "numbers_on_host.hpp"

namespace {

using art::Dtype;
using art::Method;
using art::Problems;
using naive::Matrix;

std::mt19937_64 generator;
double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(generator); }
double normal() { return std::normal_distribution<double>()(generator); }
int below(int end) { return static_cast<int>(generator() % static_cast<uint64_t>(end)); }

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr Dtype kDtypes[] = {Dtype::float32, Dtype::float64, Dtype::float16, Dtype::bfloat16};

enum class Kind {
  uniform, normal, ties, equal, huge, tiny, identity, permuted, product, mixed, bad, forbidden, sparse, kinds
};
const char* const kKindNames[] = {"uniform",  "normal",  "ties",  "equal", "huge",      "tiny",  "identity",
                                  "permuted", "product", "mixed", "bad",   "forbidden", "sparse"};

// Matrices that are difficult in different ways.
Matrix costs_of(Kind kind, int rows, int cols, Dtype dtype) {
  Matrix cost(static_cast<size_t>(rows) * cols);
  const int size = std::max(rows, cols);
  const double level = -3 * below(2);
  const int shift = below(size);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      double& c = cost[i * cols + j];
      switch (kind) {
        case Kind::uniform: c = uniform(0, 1); break;
        case Kind::normal: c = normal(); break;
        case Kind::ties: c = (below(3) - 1) * (below(2) ? 1.0 : -1.0); break;  // with -0, equal to 0
        case Kind::equal: c = level == 0 && below(2) ? -0.0 : level; break;
        case Kind::huge: c = uniform(-1, 1) * naive::largest_of(dtype); break;
        case Kind::tiny: c = (below(2000) - 1000) * naive::smallest_of(dtype); break;
        case Kind::identity: c = (i == j ? -1 : 0) + 1e-3 * normal(); break;
        case Kind::permuted: c = (i + shift) % size == j ? 0.0 : std::fmin(1e30, 6e4); break;
        case Kind::product: c = (i + 1.0) * (j + 1.0) / (dtype == Dtype::float16 ? 4 : 1); break;
        case Kind::mixed: c = std::ldexp(below(7) - 3, below(4) == 0 ? 12 : 0); break;
        case Kind::forbidden: c = below(3) == 0 && j != (i + shift) % size ? HUGE_VAL : uniform(0, 1); break;
        case Kind::sparse: c = uniform(0, 1) > 2.5 / size ? HUGE_VAL : below(7) - 3; break;  // often infeasible
        default: c = normal();
      }
    }
  }
  if (kind == Kind::bad) cost[below(rows * cols)] = below(3) == 0 ? kNan : below(2) ? HUGE_VAL : -HUGE_VAL;
  return cost;
}

// Problems of one shape in the dtype of the kernel, each of a different kind.
struct Batch {
  Dtype dtype;
  int rows, cols;
  std::vector<Kind> kinds;
  std::vector<char> bytes;
  std::vector<int64_t> columns;

  Problems problems(bool maximize, Method method) {
    return {bytes.data(), dtype, static_cast<int64_t>(kinds.size()), rows, cols, maximize, method, columns.data()};
  }

  Matrix matrix(size_t problem, double sign) const {
    const size_t numbers = static_cast<size_t>(rows) * cols;
    Matrix cost(numbers);
    for (size_t e = 0; e < numbers; ++e) {
      cost[e] = sign * naive::decode(dtype, &bytes[(problem * numbers + e) * naive::bytes_of(dtype)]);
    }
    return cost;
  }
};

// Costs that forbid pairs of the matching, when maximizing, are negative.
Batch batch_of(Dtype dtype, int rows, int cols, const std::vector<Kind>& kinds, bool maximize = false) {
  const size_t numbers = static_cast<size_t>(rows) * cols;
  Batch batch{dtype, rows, cols, kinds, std::vector<char>(kinds.size() * numbers * naive::bytes_of(dtype)), {}};
  batch.columns.assign(kinds.size() * rows, -7);
  char* to = batch.bytes.data();
  for (Kind kind : kinds) {
    const bool negates = maximize && (kind == Kind::forbidden || kind == Kind::sparse);
    for (double value : costs_of(kind, rows, cols, dtype)) {
      naive::encode(dtype, negates ? -value : value, to), to += naive::bytes_of(dtype);
    }
  }
  return batch;
}

[[noreturn]] void differ(const std::string& what, const Matrix& cost, int rows, const int64_t* columns) {
  const int cols = static_cast<int>(cost.size()) / rows;
  std::printf("FAILED: %s\ncolumns:", what.c_str());
  for (int i = 0; i < rows; ++i) std::printf(" %" PRId64, columns[i]);
  for (int i = 0; i < rows && rows <= 16; ++i) {
    std::printf("\n");
    for (int j = 0; j < cols && cols <= 16; ++j) std::printf(" %a", cost[i * cols + j]);
  }
  std::printf("\n");
  std::exit(1);
}

// Whether the rows have distinct columns, as many as the smaller side has, and none of them is forbidden.
bool is_matching(const Matrix& cost, int rows, int cols, const int64_t* columns) {
  std::vector<bool> taken(cols, false);
  int matched = 0;
  for (int i = 0; i < rows; ++i) {
    const int64_t j = columns[i];
    if (j == -1) continue;
    if (j < 0 || j >= cols || taken[j] || cost[i * cols + j] == HUGE_VAL) return false;
    taken[j] = true;
    ++matched;
  }
  return matched == std::min(rows, cols);
}

void check_solution(const Batch& batch, size_t problem, bool maximize, Method method, const std::string& what) {
  const int rows = batch.rows, cols = batch.cols, size = std::max(rows, cols);
  const Matrix cost = batch.matrix(problem, maximize ? -1.0 : 1.0);
  const int64_t* columns = &batch.columns[problem * rows];
  double largest = 0;
  bool solvable = true;
  for (double c : cost) {
    if (std::isfinite(c)) largest = std::fmax(largest, std::fabs(c));
    solvable = solvable && c > -HUGE_VAL && (c < HUGE_VAL || method == Method::optimal);
  }
  long double best = 0;
  if (solvable && method == Method::optimal) {
    const Matrix square = naive::padded(cost, rows, cols, size, 4 * size * largest + 1);
    best = naive::least_sum(square, size);
    solvable = best <= static_cast<long double>(largest) * size;
  }
  if (!solvable) {
    for (int i = 0; i < rows; ++i) {
      if (columns[i] != -1) differ(what + ": not -1 throughout", cost, rows, columns);
    }
    return;
  }
  if (!is_matching(cost, rows, cols, columns)) differ(what + ": not a matching", cost, rows, columns);
  if (method == Method::greedy) {
    const auto expected = naive::least_first(cost, rows);
    if (!std::equal(expected.begin(), expected.end(), columns)) differ(what + ": not greedy", cost, rows, columns);
    return;
  }
  // Sums of integers are exact, others up to the precision of float64.
  const Kind kind = batch.kinds[problem];
  const bool exact = kind == Kind::ties || kind == Kind::equal || kind == Kind::tiny || kind == Kind::product ||
                     kind == Kind::permuted || kind == Kind::mixed || kind == Kind::sparse;
  const long double tolerance = exact ? 0 : 4.0L * size * 0x1p-53L * largest;
  long double excess = -best;
  for (int i = 0; i < rows; ++i) excess += columns[i] < 0 ? 0 : cost[i * cols + columns[i]];
  if (excess > tolerance) differ(what + ": exceeds the optimum by " + std::to_string(excess), cost, rows, columns);
}

template <class Solve>
void check_batch(Dtype dtype, int rows, int cols, bool maximize, Method method, const std::vector<Kind>& kinds,
                 int seed, const Solve& solve) {
  generator.seed(seed);
  Batch batch = batch_of(dtype, rows, cols, kinds, maximize);
  solve(batch.problems(maximize, method));
  for (size_t problem = 0; problem < kinds.size(); ++problem) {
    const std::string what = std::string(method == Method::greedy ? "greedy " : "optimal ") + naive::name_of(dtype) +
                             " size " + std::to_string(rows) + " x " + std::to_string(cols) +
                             (maximize ? " maximize" : "") + " seed " + std::to_string(seed) + " problem " +
                             std::to_string(problem) + " " + kKindNames[static_cast<int>(kinds[problem])];
    check_solution(batch, problem, maximize, method, what);
  }
}

// All kinds, so that good and bad problems are solved together, in a number that fills no group. Large problems are
// slow: few of them, of other kinds each time.
std::vector<Kind> kinds_for(int size, int seed) {
  constexpr int kKinds = static_cast<int>(Kind::kinds);
  const int count = size > 65 ? 1 : size > 33 ? 4 : kKinds * (size > 9 ? 1 : size > 4 ? 5 : 19);
  std::vector<Kind> kinds;
  for (int n = 0; n < count; ++n) kinds.push_back(static_cast<Kind>((seed * count + n) % kKinds));
  generator.seed(seed);
  std::shuffle(kinds.begin(), kinds.end(), generator);
  return kinds;
}

template <class Solve>
size_t check_rectangles(int seed, const Solve& solve) {
  size_t solved = 0;
  for (const auto& [few, many] : {std::pair{1, 2}, {1, 4}, {2, 3}, {3, 4}, {2, 5}, {4, 8}, {7, 9}, {3, 16}, {5, 31},
                                  {20, 32}, {1, 33}, {12, 40}, {60, 65}, {3, 129}}) {
    for (int turn = 0; turn < 4; ++turn) {
      const bool tall = turn % 2 == 0, maximize = turn / 2 == 0;
      const auto kinds = kinds_for(many, ++seed);
      const Dtype dtype = kDtypes[(turn + few) % 4];
      check_batch(dtype, tall ? many : few, tall ? few : many, maximize, Method::optimal, kinds, seed, solve);
      solved += kinds.size();
    }
  }
  std::printf("rectangles agree\n");
  return solved;
}

// Costs that are equal up to noise below the tie keep the diagonal.
template <class Solve>
size_t check_ties(const Solve& solve) {
  size_t solved = 0;
  for (int size : {1, 2, 3, 4, 5, 8, 16, 17, 33, 70}) {
    for (Method method : {Method::optimal, Method::greedy}) {
      for (bool maximize : {false, true}) {
        generator.seed(size);
        Batch batch = batch_of(Dtype::float32, size, size, {Kind::equal, Kind::equal, Kind::equal});
        for (size_t at = 0; at < batch.bytes.size(); at += 4) {
          naive::encode(Dtype::float32, 1 + uniform(-1e-7, 1e-7), &batch.bytes[at]);
        }
        Problems problems = batch.problems(maximize, method);
        problems.tie = 0x1p-18;
        solve(problems);
        for (size_t at = 0; at < batch.columns.size(); ++at) {
          const size_t problem = at / size;
          if (batch.columns[at] == static_cast<int64_t>(at % size)) continue;
          differ("ties of " + std::to_string(size), batch.matrix(problem, 1), size, &batch.columns[problem * size]);
        }
        solved += batch.kinds.size();
      }
    }
  }
  std::printf("ties agree\n");
  return solved;
}

// All sizes, dtypes, methods and kinds; solve(problems) solves each batch.
template <class Solve>
void check_solvers(const Solve& solve) {
  int seed = 0;
  size_t solved = 0;
  for (int size : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 129, 200, 256}) {
    for (Dtype dtype : kDtypes) {
      for (Method method : {Method::optimal, Method::greedy}) {
        for (bool maximize : {false, true}) {
          const auto kinds = kinds_for(size, ++seed);
          check_batch(dtype, size, size, maximize, method, kinds, seed, solve);
          solved += kinds.size();
        }
      }
    }
    std::printf("size %d\n", size);
  }
  for (int size : {64, 65, 129}) {  // sums would overflow
    check_batch(Dtype::float64, size, size, size % 2 == 0, Method::optimal, {Kind::huge, Kind::huge}, ++seed, solve);
    solved += 2;
  }
  solved += check_rectangles(seed, solve) + check_ties(solve);
  std::printf("assignment: %zu problems agree\n", solved);
}

}  // namespace
