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

enum class Kind { uniform, normal, ties, equal, huge, tiny, identity, permuted, product, mixed, bad, kinds };
const char* const kKindNames[] = {"uniform", "normal",   "ties",    "equal", "huge", "tiny",
                                  "identity", "permuted", "product", "mixed", "bad"};

// Matrices that are difficult in different ways.
Matrix costs_of(Kind kind, int size, Dtype dtype) {
  Matrix cost(static_cast<size_t>(size) * size);
  const double level = -3 * below(2);
  const int shift = below(size);
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) {
      double& c = cost[i * size + j];
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
        default: c = normal();
      }
    }
  }
  if (kind == Kind::bad) cost[below(size * size)] = below(3) == 0 ? kNan : below(2) ? HUGE_VAL : -HUGE_VAL;
  return cost;
}

// Problems of one shape in the dtype of the kernel, each of a different kind.
struct Batch {
  Dtype dtype;
  int size;
  std::vector<Kind> kinds;
  std::vector<char> bytes;
  std::vector<int64_t> columns;

  Matrix matrix(size_t problem, double sign) const {
    const size_t numbers = static_cast<size_t>(size) * size;
    Matrix cost(numbers);
    for (size_t e = 0; e < numbers; ++e) {
      cost[e] = sign * naive::decode(dtype, &bytes[(problem * numbers + e) * naive::bytes_of(dtype)]);
    }
    return cost;
  }
};

Batch batch_of(Dtype dtype, int size, const std::vector<Kind>& kinds) {
  const size_t numbers = static_cast<size_t>(size) * size;
  Batch batch{dtype, size, kinds, std::vector<char>(kinds.size() * numbers * naive::bytes_of(dtype)), {}};
  batch.columns.assign(kinds.size() * size, -7);
  char* to = batch.bytes.data();
  for (Kind kind : kinds) {
    for (double value : costs_of(kind, size, dtype)) naive::encode(dtype, value, to), to += naive::bytes_of(dtype);
  }
  return batch;
}

[[noreturn]] void differ(const std::string& what, const Matrix& cost, int size, const int64_t* columns) {
  std::printf("FAILED: %s\ncolumns:", what.c_str());
  for (int i = 0; i < size; ++i) std::printf(" %" PRId64, columns[i]);
  for (int i = 0; i < size && size <= 16; ++i) {
    std::printf("\n");
    for (int j = 0; j < size; ++j) std::printf(" %a", cost[i * size + j]);
  }
  std::printf("\n");
  std::exit(1);
}

void check_solution(const Batch& batch, size_t problem, bool maximize, Method method, const std::string& what) {
  const int size = batch.size;
  const Matrix cost = batch.matrix(problem, maximize ? -1.0 : 1.0);
  const int64_t* columns = &batch.columns[problem * size];
  double largest = 0;
  bool finite = true;
  for (double c : cost) largest = std::fmax(largest, std::fabs(c)), finite = finite && std::isfinite(c);
  if (!finite) {
    for (int i = 0; i < size; ++i) {
      if (columns[i] != -1) differ(what + ": not -1 throughout", cost, size, columns);
    }
    return;
  }
  if (!naive::is_permutation(columns, size)) differ(what + ": not a permutation", cost, size, columns);
  if (method == Method::greedy) {
    const auto expected = naive::least_first(cost, size);
    if (!std::equal(expected.begin(), expected.end(), columns)) differ(what + ": not greedy", cost, size, columns);
    return;
  }
  // Sums of integers are exact, others up to the precision of float64.
  const Kind kind = batch.kinds[problem];
  const bool exact = kind == Kind::ties || kind == Kind::equal || kind == Kind::tiny || kind == Kind::product ||
                     kind == Kind::permuted || kind == Kind::mixed;
  const long double tolerance = exact ? 0 : 4.0L * size * 0x1p-53L * largest;
  const long double excess = naive::sum_of(cost, size, columns) - naive::least_sum(cost, size);
  if (excess > tolerance) differ(what + ": exceeds the optimum by " + std::to_string(excess), cost, size, columns);
}

template <class Solve>
void check_batch(
    Dtype dtype, int size, bool maximize, Method method, const std::vector<Kind>& kinds, int seed, const Solve& solve) {
  generator.seed(seed);
  Batch batch = batch_of(dtype, size, kinds);
  const Problems problems{batch.bytes.data(), dtype,  static_cast<int64_t>(kinds.size()), size, maximize,
                          method,             batch.columns.data()};
  solve(problems);
  for (size_t problem = 0; problem < kinds.size(); ++problem) {
    const std::string what = std::string(method == Method::greedy ? "greedy " : "optimal ") + naive::name_of(dtype) +
                             " size " + std::to_string(size) + (maximize ? " maximize" : "") + " seed " +
                             std::to_string(seed) + " problem " + std::to_string(problem) + " " +
                             kKindNames[static_cast<int>(kinds[problem])];
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
          check_batch(dtype, size, maximize, method, kinds, seed, solve);
          solved += kinds.size();
        }
      }
    }
    std::printf("size %d\n", size);
  }
  for (int size : {64, 65, 129}) {  // sums would overflow
    check_batch(Dtype::float64, size, size % 2 == 0, Method::optimal, {Kind::huge, Kind::huge}, ++seed, solve);
    solved += 2;
  }
  std::printf("assignment: %zu problems agree\n", solved);
}

}  // namespace
