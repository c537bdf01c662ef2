// Runs the CPU solver, in the code for each instruction set that this processor has, on problems of many kinds, sizes and
// dtypes, in buffers that end where the numbers end: to be built with sanitizers. Optimality has a certificate that needs
// no other solver: a matching is optimal if and only if no cycle of exchanges has a negative sum.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "assignment.hpp"
#include "assignment_target.hpp"

namespace {

using Solve = int64_t (*)(const art::Problems&, int64_t, int64_t, void*);
using Scratch = size_t (*)(const art::Problems&);

struct Target {
  const char* name;
  Scratch scratch;
  Solve solve;
};

[[noreturn]] void fail(const std::string& where, const std::string& what) {
  std::printf("FAILED %s: %s\n", where.c_str(), what.c_str());
  std::exit(1);
}

// Nothing of a cost is lost in either 16-bit type: few digits, and small exponents where asked for.
double drawn(const std::string& kind, int i, int j, std::mt19937& random) {
  const double uniform = std::uniform_real_distribution<double>(-1, 1)(random);
  if (kind == "uniform") return uniform;
  if (kind == "tied") return std::floor(3 * uniform);
  if (kind == "equal") return 1;
  if (kind == "products") return (i + 1) * (j + 1);  // the matching that greed begins with is the worst
  if (kind == "nearly identity") return (i != j) + std::ldexp(std::floor(8 * uniform), -7);
  if (kind == "huge") return uniform * 1e30;
  return uniform * std::numeric_limits<double>::max();  // "largest"
}

uint16_t half_bits(double value) {  // of numbers that are halves, or to be cut to one
  if (value == 0) return 0;
  int exponent;
  const double mantissa = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
  const int steps = static_cast<int>(std::ldexp(mantissa, 11)) & 0x3ff;
  return (value < 0 ? 0x8000 : 0) | std::max(0, exponent + 14) << 10 | (exponent + 14 > 0 ? steps : 0);
}

double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const double magnitude = exponent == 0 ? 0 : std::ldexp(1024 + (bits & 1023), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Writes a cost in a dtype, and gives back what is then there.
double put(void* to, art::Dtype dtype, size_t at, double value) {
  if (dtype == art::Dtype::float64) return static_cast<double*>(to)[at] = value;
  if (dtype == art::Dtype::float32) return static_cast<float*>(to)[at] = static_cast<float>(value);
  uint16_t bits;
  if (dtype == art::Dtype::float16) {
    bits = half_bits(value);
    value = half_value(bits);
  } else {
    const float wide = static_cast<float>(value);
    uint32_t wide_bits;
    std::memcpy(&wide_bits, &wide, sizeof(wide));
    bits = static_cast<uint16_t>(wide_bits >> 16);
    wide_bits = static_cast<uint32_t>(bits) << 16;
    float cut;
    std::memcpy(&cut, &wide_bits, sizeof(cut));
    value = cut;
  }
  static_cast<uint16_t*>(to)[at] = bits;
  return value;
}

// No cycle of exchanges i -> the row of the next column lowers the sum: Bellman and Ford find none.
bool is_optimal(const std::vector<double>& cost, int size, const int64_t* columns, double tolerance) {
  std::vector<double> potential(size, 0.0);
  for (int round = 0; round <= size; ++round) {
    bool changed = false;
    for (int i = 0; i < size; ++i) {
      for (int k = 0; k < size; ++k) {
        const double exchange = cost[i * size + columns[k]] - cost[i * size + columns[i]];
        if (potential[i] + exchange < potential[k] - tolerance) {
          potential[k] = potential[i] + exchange;
          changed = true;
        }
      }
    }
    if (!changed) return true;
  }
  return false;
}

std::vector<int64_t> greedy(std::vector<double> cost, int size) {
  std::vector<int64_t> columns(size);
  for (int round = 0; round < size; ++round) {
    const int at = static_cast<int>(std::min_element(cost.begin(), cost.end()) - cost.begin());
    const int row = at / size, column = at % size;
    columns[row] = column;
    for (int k = 0; k < size; ++k)
      cost[row * size + k] = cost[k * size + column] = std::numeric_limits<double>::infinity();
  }
  return columns;
}

struct Batch {
  art::Dtype dtype;
  art::Method method;
  bool maximize;
  int size, count;
  std::string kind;
};

int64_t bad_problem(const Batch& batch) { return batch.kind == "uniform" && batch.count > 2 ? batch.count - 2 : -1; }

void check(const Batch& batch, const Target& target, std::mt19937& random) {
  const int size = batch.size;
  const size_t numbers = static_cast<size_t>(batch.count) * size * size;
  const size_t bytes = batch.dtype == art::Dtype::float64 ? 8 : batch.dtype == art::Dtype::float32 ? 4 : 2;
  const std::unique_ptr<char[]> costs(new char[numbers * bytes]);
  std::vector<double> known(numbers);
  for (size_t at = 0; at < numbers; ++at)
    known[at] = put(costs.get(), batch.dtype, at, drawn(batch.kind, at / size % size, at % size, random));
  const int64_t bad = bad_problem(batch);
  if (bad >= 0 && bytes > 2) put(costs.get(), batch.dtype, (bad * size + size - 1) * size, random() % 2 ? NAN : INFINITY);
  if (bad >= 0 && bytes == 2) reinterpret_cast<uint16_t*>(costs.get())[(bad * size + size - 1) * size] = 0x7fff;
  const std::unique_ptr<int64_t[]> columns(new int64_t[static_cast<size_t>(batch.count) * size]);
  const art::Problems problems{costs.get(), batch.dtype,  batch.count,  size,
                               batch.maximize, batch.method, columns.get()};

  int64_t found;
  if (target.solve == nullptr) {
    found = art::solve_on_cpu(problems, 3);
  } else {
    const size_t scratch = target.scratch(problems);
    const std::unique_ptr<char[]> memory(new char[scratch]);
    found = target.solve(problems, 0, batch.count, memory.get());
  }

  const std::string where = std::string(target.name) + ", " + batch.kind + ", size " + std::to_string(size) + ", dtype " +
                            std::to_string(static_cast<int>(batch.dtype)) + (batch.maximize ? ", maximize" : "") +
                            (batch.method == art::Method::greedy ? ", greedy" : "");
  if (found != bad) fail(where, "first bad problem is " + std::to_string(found));
  for (int problem = 0; problem < batch.count; ++problem) {
    const int64_t* taken = columns.get() + static_cast<size_t>(problem) * size;
    std::vector<int64_t> sorted(taken, taken + size);
    std::sort(sorted.begin(), sorted.end());
    for (int k = 0; k < size; ++k)
      if (sorted[k] != (problem == bad ? -1 : k)) fail(where, "problem " + std::to_string(problem) + " is not matched");
    if (problem == bad) continue;
    std::vector<double> cost(known.begin() + static_cast<size_t>(problem) * size * size,
                             known.begin() + static_cast<size_t>(problem + 1) * size * size);
    double largest = 0;
    for (double& value : cost) {
      value *= (batch.maximize ? -1 : 1) * 0x1p-20;  // sums of the largest numbers would overflow here too
      largest = std::max(largest, std::fabs(value));
    }
    if (batch.method == art::Method::optimal) {
      if (!is_optimal(cost, size, taken, 1e-14 * largest)) fail(where, "problem " + std::to_string(problem) + " can be bettered");
    } else if (greedy(cost, size) != std::vector<int64_t>(taken, taken + size)) {
      fail(where, "problem " + std::to_string(problem) + " is not greedy");
    }
  }
}

}  // namespace

int main() {
  std::vector<Target> targets{{"threads", nullptr, nullptr}, {"portable", art::portable::scratch_bytes, art::portable::solve_some}};
#ifdef ART_KERNELS_X86_TARGETS
  if (__builtin_cpu_supports("avx2")) targets.push_back({"avx2", art::avx2::scratch_bytes, art::avx2::solve_some});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    targets.push_back({"avx512", art::avx512::scratch_bytes, art::avx512::solve_some});
#endif
  std::mt19937 random(1);
  long batches = 0;
  for (const Target& target : targets)
    for (const char* kind : {"uniform", "tied", "equal", "products", "nearly identity", "huge", "largest"})
      for (const art::Dtype dtype : {art::Dtype::float32, art::Dtype::float64, art::Dtype::float16, art::Dtype::bfloat16}) {
        const bool wide = !std::strcmp(kind, "huge") ? dtype != art::Dtype::float16 : dtype == art::Dtype::float64;
        if ((!std::strcmp(kind, "huge") || !std::strcmp(kind, "largest")) && !wide) continue;
        for (const int size : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 64})
          for (const bool maximize : {false, true})
            for (const art::Method method : {art::Method::optimal, art::Method::greedy}) {
              check({dtype, method, maximize, size, size <= 9 ? 11 : 1, kind}, target, random);
              ++batches;
            }
      }
  for (const Target& target : targets) {
    check({art::Dtype::float32, art::Method::optimal, false, 256, 1, "uniform"}, target, random);
    check({art::Dtype::float32, art::Method::optimal, false, 4, 20000, "uniform"}, target, random);  // several threads
    check({art::Dtype::float64, art::Method::optimal, true, 8, 3000, "tied"}, target, random);
    batches += 3;
  }
  std::vector<int64_t> matches{1, 2, 0, 2, 1, 0, -1, -1, -1, 1, 0, 2}, order(18);
  art::compose_on_cpu(matches.data(), 2, 3, 3, order.data());
  if (order != std::vector<int64_t>{0, 1, 2, 1, 2, 0, 1, 0, 2, 0, 1, 2, -1, -1, -1, -1, -1, -1}) fail("compose", "wrong order");
  std::printf("%ld batches matched as they should be, in the code of %zu targets\n", batches, targets.size() - 1);
}
