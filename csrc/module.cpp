// The Python module: addresses, sizes and numbers in, nothing of any tensor library.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "assignment.hpp"

namespace py = pybind11;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

art::Problems problems(
    uintptr_t cost, int dtype, int64_t count, int size, bool maximize, bool greedy, uintptr_t columns) {
  return {at<const void>(cost),
          static_cast<art::Dtype>(dtype),
          count,
          size,
          maximize,
          greedy ? art::Method::greedy : art::Method::optimal,
          at<int64_t>(columns)};
}

#ifdef ART_KERNELS_WITH_CUDA
void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}
#endif

}  // namespace

PYBIND11_MODULE(_csrc, module) {
  module.doc() = "Batched assignment and linking; see csrc/assignment.hpp.";
  module.attr("MAX_SIZE") = art::kMaxSize;
  module.def(
      "solve_on_cpu",
      [](uintptr_t cost, int dtype, int64_t count, int size, bool maximize, bool greedy, uintptr_t columns,
         int threads) {
        py::gil_scoped_release released;
        return art::solve_on_cpu(problems(cost, dtype, count, size, maximize, greedy, columns), threads);
      },
      py::arg("cost"), py::arg("dtype"), py::arg("count"), py::arg("size"), py::arg("maximize"), py::arg("greedy"),
      py::arg("columns"), py::arg("threads"));
  module.def(
      "compose_on_cpu",
      [](uintptr_t matches, int64_t videos, int frames, int size, uintptr_t order) {
        py::gil_scoped_release released;
        art::compose_on_cpu(at<const int64_t>(matches), videos, frames, size, at<int64_t>(order));
      },
      py::arg("matches"), py::arg("videos"), py::arg("frames"), py::arg("size"), py::arg("order"));
#ifdef ART_KERNELS_WITH_CUDA
  module.attr("CUDA") = ART_KERNELS_CUDA_ARCHITECTURES;
  module.attr("MAX_LINKED") = art::kMaxLinked;
  module.def(
      "solve_on_cuda",
      [](uintptr_t cost, int dtype, int64_t count, int size, bool maximize, bool greedy, uintptr_t columns,
         uintptr_t stream) {
        check(art::solve_on_cuda(problems(cost, dtype, count, size, maximize, greedy, columns), at<void>(stream)));
      },
      py::arg("cost"), py::arg("dtype"), py::arg("count"), py::arg("size"), py::arg("maximize"), py::arg("greedy"),
      py::arg("columns"), py::arg("stream"));
  module.def(
      "link_on_cuda",
      [](uintptr_t values, int dtype, int64_t videos, int frames, int size, int channels, int64_t stride_video,
         int64_t stride_frame, int64_t stride_response, bool greedy, double min_similarity, uintptr_t matches,
         uintptr_t matched, uintptr_t order, uintptr_t similarity, uintptr_t tracklet_id, uintptr_t stream) {
        const art::Responses responses{at<const void>(values), static_cast<art::Dtype>(dtype), videos, frames, size,
                                       channels, stride_video, stride_frame, stride_response};
        const art::Links links{at<int64_t>(matches), at<void>(matched), at<int64_t>(order), at<void>(similarity),
                               at<int64_t>(tracklet_id)};
        const art::Method method = greedy ? art::Method::greedy : art::Method::optimal;
        check(art::link_on_cuda(responses, method, min_similarity, links, at<void>(stream)));
      },
      py::arg("values"), py::arg("dtype"), py::arg("videos"), py::arg("frames"), py::arg("size"), py::arg("channels"),
      py::arg("stride_video"), py::arg("stride_frame"), py::arg("stride_response"), py::arg("greedy"),
      py::arg("min_similarity"), py::arg("matches"), py::arg("matched"), py::arg("order"), py::arg("similarity"),
      py::arg("tracklet_id"), py::arg("stream"));
  module.def(
      "compose_on_cuda",
      [](uintptr_t matches, int64_t videos, int frames, int size, uintptr_t order, uintptr_t stream) {
        check(art::compose_on_cuda(
            at<const int64_t>(matches), videos, frames, size, at<int64_t>(order), at<void>(stream)));
      },
      py::arg("matches"), py::arg("videos"), py::arg("frames"), py::arg("size"), py::arg("order"), py::arg("stream"));
#else
  module.attr("CUDA") = "";
#endif
}
