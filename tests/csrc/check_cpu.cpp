// Runs the CPU code for each instruction set that this processor supports, and compares it with naive solutions; build
// it with sanitizers.
#include "films_on_host.hpp"
#include "processor.hpp"

namespace {

using namespace art;

bool is_unsolved(const Problems& problems, int64_t problem) {
  const int64_t* columns = problems.columns + problem * problems.rows;
  return std::all_of(columns, columns + problems.rows, [](int64_t column) { return column < 0; });
}

int64_t first_bad_of(const Problems& problems) {
  for (int64_t problem = 0; problem < problems.count; ++problem)
    if (is_unsolved(problems, problem)) return problem;
  return -1;
}

void check_first_bad(const Problems& problems, int64_t found) {
  if (found == first_bad_of(problems)) return;
  std::printf("FAILED: the first bad problem is %" PRId64 ", found %" PRId64 "\n", first_bad_of(problems), found);
  std::exit(1);
}

void check_processor(const char* name, const Processor& processor) {
  std::printf("%s\n", name);
  check_solvers([&](const Problems& problems) { check_first_bad(problems, solve_with(processor, problems, 1)); });
  check_linking({Dtype::float32, Dtype::float64},
                [&](const Responses& responses, Method method, double min_similarity, const Links& links) {
                  link_with(processor, responses, method, min_similarity, links, 1);
                });
}

// Enough for several threads, with pieces of arbitrary sizes.
void check_threads() {
  for (const int size : {2, 4, 7, 20}) {
    const std::vector<Kind> kinds(200000 / (size * size), Kind::uniform);
    Batch batch = batch_of(Dtype::float32, size, size, kinds);
    naive::encode(Dtype::float32, kNan, &batch.bytes[batch.bytes.size() / 2 / 4 * 4]);
    const Problems problems = batch.problems(false, Method::optimal);
    check_first_bad(problems, solve_on_cpu(problems, 1));
    const std::vector<int64_t> columns = batch.columns;
    check_first_bad(problems, solve_on_cpu(problems, 5));
    expect_same(batch.columns, columns, "threads, size " + std::to_string(size));
  }
  std::printf("threads agree\n");
}

}  // namespace

int main() {
  check_processor("portable", portable::kProcessor);
#ifdef ART_KERNELS_X86_TARGETS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) check_processor("avx2", avx2::kProcessor);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    check_processor("avx512", avx512::kProcessor);
#endif
  check_threads();
}
