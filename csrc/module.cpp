// The Python module. It takes addresses, sizes and numbers, and is independent of any tensor library.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "assignment.hpp"

namespace py = pybind11;
using py::arg;
using Released = py::call_guard<py::gil_scoped_release>;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

art::Method method(bool greedy) { return greedy ? art::Method::greedy : art::Method::optimal; }

// The structs of assignment.hpp, with addresses instead of pointers.
void define_structures(py::module_& module) {
  py::class_<art::Problems>(module, "Problems")
      .def(py::init([](uintptr_t cost, int dtype, int64_t count, int rows, int cols, bool maximize, bool greedy,
                       uintptr_t columns, double tie) {
             return art::Problems{at<const void>(cost), static_cast<art::Dtype>(dtype), count, rows, cols, maximize,
                                  method(greedy), at<int64_t>(columns), tie};
           }),
           arg("cost"), arg("dtype"), arg("count"), arg("rows"), arg("cols"), arg("maximize"), arg("greedy"),
           arg("columns"), arg("tie"));
  py::class_<art::Responses>(module, "Responses")
      .def(py::init([](uintptr_t values, int dtype, int64_t videos, int frames, int size, int channels,
                       int64_t stride_video, int64_t stride_frame, int64_t stride_response, double tie) {
             return art::Responses{at<const void>(values), static_cast<art::Dtype>(dtype), videos, frames, size,
                                   channels, stride_video, stride_frame, stride_response, tie};
           }),
           arg("values"), arg("dtype"), arg("videos"), arg("frames"), arg("size"), arg("channels"),
           arg("stride_video"), arg("stride_frame"), arg("stride_response"), arg("tie"));
  py::class_<art::Links>(module, "Links")
      .def(py::init([](uintptr_t matches, uintptr_t matched, uintptr_t order, uintptr_t similarity,
                       uintptr_t tracklet_id) {
             return art::Links{at<int64_t>(matches), at<void>(matched), at<int64_t>(order), at<void>(similarity),
                               at<int64_t>(tracklet_id)};
           }),
           arg("matches"), arg("matched"), arg("order"), arg("similarity"), arg("tracklet_id"));
}

void define_cpu(py::module_& module) {
  module.def("solve_on_cpu", &art::solve_on_cpu, arg("problems"), arg("threads"), Released());
  module.def(
      "link_on_cpu",
      [](const art::Responses& responses, bool greedy, double min_similarity, const art::Links& links, int threads) {
        art::link_on_cpu(responses, method(greedy), min_similarity, links, threads);
      },
      arg("responses"), arg("greedy"), arg("min_similarity"), arg("links"), arg("threads"), Released());
  module.def(
      "compose_on_cpu",
      [](uintptr_t matches, int64_t videos, int frames, int size, uintptr_t order) {
        art::compose_on_cpu(at<const int64_t>(matches), videos, frames, size, at<int64_t>(order));
      },
      arg("matches"), arg("videos"), arg("frames"), arg("size"), arg("order"), Released());
}

#ifdef ART_KERNELS_WITH_CUDA
void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

void define_cuda(py::module_& module) {
  module.attr("CUDA") = ART_KERNELS_CUDA_ARCHITECTURES;
  module.attr("MAX_LINKED") = art::kMaxLinked;
  module.def(
      "solve_on_cuda",
      [](const art::Problems& problems, uintptr_t stream) { check(art::solve_on_cuda(problems, at<void>(stream))); },
      arg("problems"), arg("stream"));
  module.def(
      "link_on_cuda",
      [](const art::Responses& responses, bool greedy, double min_similarity, const art::Links& links,
         uintptr_t stream) {
        check(art::link_on_cuda(responses, method(greedy), min_similarity, links, at<void>(stream)));
      },
      arg("responses"), arg("greedy"), arg("min_similarity"), arg("links"), arg("stream"));
  module.def(
      "compose_on_cuda",
      [](uintptr_t matches, int64_t videos, int frames, int size, uintptr_t order, uintptr_t stream) {
        check(art::compose_on_cuda(at<const int64_t>(matches), videos, frames, size, at<int64_t>(order),
                                   at<void>(stream)));
      },
      arg("matches"), arg("videos"), arg("frames"), arg("size"), arg("order"), arg("stream"));
}
#endif

}  // namespace

PYBIND11_MODULE(_csrc, module) {
  module.doc() = "Batched assignment and linking; see csrc/assignment.hpp.";
  module.attr("CUDA") = "";
  module.attr("INTERFACE") = 2;  // increased with every change that cpp.py depends on
  define_structures(module);
  define_cpu(module);
#ifdef ART_KERNELS_WITH_CUDA
  define_cuda(module);
#endif
}
